"""A family's tables and its drawing."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from markupsafe import Markup

from kd_app.reporting.html.charts import (
    Chart,
    Series,
    build_linear_axis,
    build_log_axis,
    draw_line,
    draw_plane,
    format_percent,
    format_plain,
    place,
)
from kd_app.reporting.html.family import format_milliseconds, format_price
from kd_app.reporting.html.palette import Look
from kd_app.reporting.html.schema import FamilyPart, FilePart
from kd_app.reporting.html.tables import OUTCOMES, Cell, Table, build_cell
from kd_app.reporting.sentences import count

_LOOKS = 6


def build_tiers_table(family: FamilyPart) -> Table:
    """A row a tier, from cheap to dear, and the teachers in torch."""
    teachers = [
        part
        for part in family.files
        if part.role == "teacher" and not part.file and part.cost_per_million
    ]
    chosen = [part for part in family.files if part.tier is not None]
    rows = [
        [
            Cell("" if part.tier is None else f"tier {part.tier}"),
            Cell(part.label),
            build_cell(part.figure),
            Cell(_format_price(part.cost_per_million, family)),
            Cell(_compare_cost(part, teachers)),
            Cell(_format_milliseconds(part.latency_p50)),
            Cell(_format_bytes(part.size_bytes)),
            Cell(part.license),
        ]
        for part in [*sorted(chosen, key=lambda part: part.tier or 0), *teachers]
    ]
    heads = [
        "",
        "file",
        "top-1 accuracy",
        "a million images",
        "its teacher in torch costs",
        "latency, p50",
        "size",
        "license",
    ]
    return Table(
        f"Tiers on {family.device}: the files that no other beats in validation accuracy and cost",
        heads,
        rows,
        frozenset({0, 1, 7}),
    )


def _compare_cost(part: FilePart, teachers: Sequence[FilePart]) -> str:
    teacher = next((each for each in teachers if each.run == part.run), None)
    if (
        teacher is None
        or teacher is part
        or not part.cost_per_million
        or teacher.cost_per_million is None
    ):
        return ""
    return f"{teacher.cost_per_million / part.cost_per_million:.3g} x"


def build_files_table(family: FamilyPart) -> Table:
    """A row a file, from cheap to dear."""
    rows = [
        [
            Cell(f"★ {part.label}" if part.ship else part.label),
            build_cell(part.validation),
            build_cell(part.test),
            Cell(OUTCOMES.get(part.outcome or "", "")),
            Cell("" if part.negative_flips is None else f"{100 * part.negative_flips:.2f} %"),
            Cell(_format_bytes(part.size_bytes)),
            Cell(_format_milliseconds(part.latency_p50), _format_tail(part)),
            Cell(
                "" if part.images_per_second is None else f"{part.images_per_second:,.0f}",
                "" if not part.batch_size else f"batch {part.batch_size}",
            ),
            Cell(_format_price(part.cost_per_million, family)),
            Cell(
                "" if part.start_seconds is None else format_milliseconds(1000 * part.start_seconds)
            ),
            Cell(_format_bytes(part.peak_memory_bytes)),
            Cell(part.license),
        ]
        for part in family.files
    ]
    speeds = ["latency, p50", "images per second", "a million images", "start", "peak memory"]
    heads = [
        "file",
        "validation top-1",
        "test top-1",
        "verdict",
        "negative flips",
        "size",
        *speeds,
        "license",
    ]
    marked = frozenset(number for number, part in enumerate(family.files) if part.ship)
    star = " (★: the one to ship of its run)" if marked else ""
    return Table(
        f"Every file of {family.data}, from cheap to dear{star}",
        heads,
        rows,
        frozenset({0, 3, len(heads) - 1}),
        marked,
    )


def _format_tail(part: FilePart) -> str:
    found = [
        f"{name} {format_milliseconds(value)}"
        for name, value in (("p95", part.latency_p95), ("p99", part.latency_p99))
        if value is not None
    ]
    return ", ".join(found)


def _format_milliseconds(value: float | None) -> str:
    return "" if value is None else format_milliseconds(value)


def _format_price(value: float | None, family: FamilyPart) -> str:
    return "" if value is None else format_price(value, family.currency)


def _format_bytes(size: int | None) -> str:
    return "" if size is None else f"{count(size)}B"


def plot_front(family: FamilyPart) -> Iterator[Chart]:
    """Accuracy against cost; the dotted line joins the tiers."""
    found = [
        (part, part.figure.value, part.cost_per_million)
        for part in family.files
        if part.figure and part.cost_per_million
    ]
    drawn = [(part, value, cost) for part, value, cost in found if value is not None and cost > 0]
    if len({cost for _, _, cost in drawn}) < 2:
        return
    by_run = len({part.run for part, _, _ in drawn}) > 1
    called = [_group(part, by_run) for part, _, _ in drawn]
    apart = list(dict.fromkeys(called))
    apart = apart if len(apart) <= _LOOKS else apart[: _LOOKS - 1]
    groups: dict[str, list[tuple[FilePart, float, float]]] = {}
    for name, each in zip(called, drawn, strict=True):
        groups.setdefault(name if name in apart else "others", []).append(each)
    series = [
        _build_series(name, Look(number), each)
        for number, (name, each) in enumerate(groups.items())
    ]
    label = f"{family.currency} for a million images".strip()
    x = build_log_axis(label, [cost for _, _, cost in drawn], format_plain)
    y = build_linear_axis(
        "top-1",
        [end for each in series for end in (*each.y, *each.lows, *each.highs) if end is not None],
        format_percent,
        least=0,
        most=1,
    )
    steps = sorted(
        (part.tier, place(x, y, cost, value))
        for part, value, cost in drawn
        if part.tier is not None
    )
    below = Markup("").join(draw_line(*a, *b, "front") for (_, a), (_, b) in pairwise(steps))
    title = "Accuracy of each file against what a million images cost"
    told = f"Top-1 accuracy against {label}, on a logarithmic axis. " + "; ".join(
        f"{each.name}: {len(each.x)}" for each in series
    )
    svg = draw_plane(title, f"{told}.", x, y, series, lines=False, below=below)
    yield Chart(
        title,
        svg,
        [(each.look.draw_key(), each.name) for each in series],
        "Up and left is better. Dotted: the tiers, chosen on validation.",
    )


def _group(part: FilePart, by_run: bool) -> str:
    if not part.file:
        return "in torch"
    return part.run if by_run else part.format


def _build_series(name: str, look: Look, found: Sequence[tuple[FilePart, float, float]]) -> Series:
    ends = (
        [(part.figure.low, part.figure.high) for part, _, _ in found if part.figure]
        if len(found) <= _LOOKS
        else []
    )
    return Series(
        name,
        look,
        [cost for _, _, cost in found],
        [value for _, value, _ in found],
        [low for low, _ in ends],
        [high for _, high in ends],
        [f"{part.label}: {100 * value:.2f} %, {cost:.3g}" for part, value, cost in found],
    )
