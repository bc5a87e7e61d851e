"""Tables and chart about exported files."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from markupsafe import Markup

from kd_app.reporting.html.charts import (
    Axis,
    Chart,
    Series,
    build_linear_axis,
    build_log_axis,
    draw_line,
    draw_plane,
    format_percent,
    format_plain,
    locate,
)
from kd_app.reporting.html.family import format_milliseconds, format_price
from kd_app.reporting.html.palette import SeriesStyle
from kd_app.reporting.html.schema import FamilyPart, FilePart
from kd_app.reporting.html.tables import OUTCOMES, Cell, Table, build_cell
from kd_app.reporting.sentences import format_count

_MAX_GROUPS = 6
"""Number of styles; further groups share the last one as 'others'."""
_MAX_INTERVALS = 6
"""Intervals of more files in a group would hide each other."""
_Priced = tuple[FilePart, float, float]
"""A file with its accuracy and its cost."""


def build_tiers_table(family: FamilyPart) -> Table:
    """Build a table with one row per tier, the cheapest first, and one row per teacher
    in torch.
    """
    teachers = [
        part
        for part in family.files
        if part.role == "teacher" and not part.file and part.cost_per_million
    ]
    tiers = sorted(
        (part for part in family.files if part.tier is not None), key=lambda part: part.tier or 0
    )
    rows = [
        [
            Cell("" if part.tier is None else f"tier {part.tier}"),
            Cell(part.label),
            build_cell(part.accuracy),
            Cell(_format_price(part.cost_per_million, family)),
            Cell(_compare_cost(part, teachers)),
            Cell(_format_milliseconds(part.latency_p50)),
            Cell(_format_size(part.size_bytes)),
            Cell(part.license),
        ]
        for part in [*tiers, *teachers]
    ]
    columns = [
        "",
        "file",
        "top-1 accuracy",
        "cost per million images",
        "relative cost of the teacher",
        "latency, p50",
        "size",
        "license",
    ]
    title = (
        f"Tiers on {family.device}: files that no other file beats in both validation accuracy and"
        " cost"
    )
    return Table(title, columns, rows, frozenset({0, 1, 7}))


def _compare_cost(part: FilePart, teachers: Sequence[FilePart]) -> str:
    """Format the cost of the run's teacher as a multiple of the cost of `part`."""
    teacher = next((teacher for teacher in teachers if teacher.run == part.run), None)
    if teacher is None or teacher is part:
        return ""
    if not part.cost_per_million or teacher.cost_per_million is None:
        return ""
    return f"{teacher.cost_per_million / part.cost_per_million:.3g} x"


def build_files_table(family: FamilyPart) -> Table:
    """Build a table with one row per file, the cheapest first."""
    columns = [
        "file",
        "validation top-1",
        "test top-1",
        "verdict",
        "negative flips",
        "size",
        "latency, p50",
        "images per second",
        "cost per million images",
        "start",
        "peak memory",
        "license",
    ]
    marked = frozenset(number for number, part in enumerate(family.files) if part.ship)
    note = " (★: the file that its run recommends)" if marked else ""
    return Table(
        f"All files of {family.data}, from cheapest to most expensive{note}",
        columns,
        [_build_file_row(part, family) for part in family.files],
        frozenset({0, 3, len(columns) - 1}),
        marked,
    )


def _build_file_row(part: FilePart, family: FamilyPart) -> list[Cell]:
    flips, speed, start = part.negative_flips, part.images_per_second, part.start_seconds
    return [
        Cell(f"★ {part.label}" if part.ship else part.label),
        build_cell(part.validation),
        build_cell(part.test),
        Cell(OUTCOMES.get(part.outcome or "", "")),
        Cell("" if flips is None else f"{100 * flips:.2f} %"),
        Cell(_format_size(part.size_bytes)),
        Cell(_format_milliseconds(part.latency_p50), _format_tail(part)),
        Cell(
            "" if speed is None else f"{speed:,.0f}",
            f"batch {part.batch_size}" if part.batch_size else "",
        ),
        Cell(_format_price(part.cost_per_million, family)),
        Cell("" if start is None else format_milliseconds(1000 * start)),
        Cell(_format_size(part.peak_memory_bytes)),
        Cell(part.license),
    ]


def _format_tail(part: FilePart) -> str:
    percentiles = (("p95", part.latency_p95), ("p99", part.latency_p99))
    return ", ".join(
        f"{name} {format_milliseconds(value)}" for name, value in percentiles if value is not None
    )


def _format_milliseconds(value: float | None) -> str:
    return "" if value is None else format_milliseconds(value)


def _format_price(value: float | None, family: FamilyPart) -> str:
    return "" if value is None else format_price(value, family.currency)


def _format_size(size: int | None) -> str:
    return "" if size is None else f"{format_count(size)}B"


def plot_front(family: FamilyPart) -> Iterator[Chart]:
    """Plot accuracy against cost. A dotted line joins the tiers."""
    files = list(_iterate_priced(family))
    if len({cost for _, _, cost in files}) < 2:
        return
    series = [
        _build_series(name, SeriesStyle(number), group)
        for number, (name, group) in enumerate(_group_files(files).items())
    ]
    label = f"{family.currency} per million images".strip()
    x = build_log_axis(label, [cost for _, _, cost in files], format_plain)
    bounds = [
        value for one in series for value in (*one.y, *one.lows, *one.highs) if value is not None
    ]
    y = build_linear_axis("top-1", bounds, format_percent, minimum=0, maximum=1)
    title = "Accuracy of each file against cost per million images"
    counts = "; ".join(f"{one.name}: {len(one.x)}" for one in series)
    description = f"Top-1 accuracy against {label}, on a logarithmic axis. {counts}."
    front = _draw_tiers(files, x, y)
    yield Chart(
        title,
        draw_plane(title, description, x, y, series, lines=False, background=front),
        [(one.style.draw_key(), one.name) for one in series],
        "Up and left is better. Dotted: the tiers, selected on validation.",
    )


def _iterate_priced(family: FamilyPart) -> Iterator[_Priced]:
    for part in family.files:
        accuracy = part.accuracy.value if part.accuracy else None
        if accuracy is not None and part.cost_per_million and part.cost_per_million > 0:
            yield part, accuracy, part.cost_per_million


def _draw_tiers(files: Sequence[_Priced], x: Axis, y: Axis) -> Markup:
    tiers = sorted(
        (part.tier, locate(x, y, cost, accuracy))
        for part, accuracy, cost in files
        if part.tier is not None
    )
    return Markup("").join(
        draw_line(*start, *end, "front") for (_, start), (_, end) in pairwise(tiers)
    )


def _group_files(files: Sequence[_Priced]) -> dict[str, list[_Priced]]:
    """Group files by run, or by format if all are from one run."""
    by_run = len({part.run for part, _, _ in files}) > 1
    names = [_name_group(part, by_run) for part, _, _ in files]
    distinct = list(dict.fromkeys(names))
    if len(distinct) > _MAX_GROUPS:
        distinct = distinct[: _MAX_GROUPS - 1]
    groups: dict[str, list[_Priced]] = {}
    for name, file in zip(names, files, strict=True):
        groups.setdefault(name if name in distinct else "others", []).append(file)
    return groups


def _name_group(part: FilePart, by_run: bool) -> str:
    if not part.file:
        return "in torch"
    return part.run if by_run else part.format


def _build_series(name: str, style: SeriesStyle, files: Sequence[_Priced]) -> Series:
    intervals = [part.accuracy for part, _, _ in files if part.accuracy]
    if len(files) > _MAX_INTERVALS:
        intervals = []
    return Series(
        name,
        style,
        x=[cost for _, _, cost in files],
        y=[accuracy for _, accuracy, _ in files],
        lows=[interval.low for interval in intervals],
        highs=[interval.high for interval in intervals],
        tooltips=[
            f"{part.label}: {100 * accuracy:.2f} %, {cost:.3g}" for part, accuracy, cost in files
        ],
    )
