"""Charts that compare models by cost, and methods by seed."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from markupsafe import Markup

from kd_app.reporting.html.charts import (
    Axis,
    Chart,
    Series,
    build_linear_axis,
    build_log_axis,
    draw_dumbbells,
    draw_line,
    draw_plane,
    format_percent,
    format_plain,
    locate,
)
from kd_app.reporting.html.comparison_tables import list_accuracies
from kd_app.reporting.html.legend import assign_styles, build_legend
from kd_app.reporting.html.palette import SeriesStyle
from kd_app.reporting.html.run_section import label_models
from kd_app.reporting.html.schema import ComparisonPart, Point
from kd_app.reporting.pareto import select_pareto_front
from kd_app.reporting.sentences import format_count

MAX_METHODS = 20
_MAX_INTERVALS = 12
"""Intervals of more points would hide each other."""
_COSTS = (
    ("images_per_second", "images per second", True),
    ("size_bytes", "size on disk, bytes", False),
    ("macs", "multiply-adds per image", False),
)
"""Attribute of a `Point`, label, and whether more is better."""


def plot_front(points: Sequence[Point]) -> Iterator[Chart]:
    """Plot top-1 accuracy against each cost. A dotted line joins the models that no
    other model beats in both accuracy and cost.
    """
    for key, label, more_is_better in _COSTS:
        # The same model occurs in several runs.
        distinct = {
            (point.role, point.name, point.top1.value, getattr(point, key)): point
            for point in points
            if getattr(point, key)
        }
        costs = [
            (point, float(getattr(point, key)))
            for point in distinct.values()
            if point.top1.value is not None
        ]
        if len({cost for _, cost in costs}) > 1:
            yield _plot_cost(label, costs, more_is_better=more_is_better)


def _plot_cost(label: str, costs: Sequence[tuple[Point, float]], *, more_is_better: bool) -> Chart:
    styles = assign_styles(list(dict.fromkeys(point.role for point, _ in costs)))
    has_intervals = len(costs) <= _MAX_INTERVALS
    series = []
    for number, (role, style) in enumerate(styles.items()):
        offset = 7.0 * (number - (len(styles) - 1) / 2) if has_intervals else 0.0
        role_costs = [(point, cost) for point, cost in costs if point.role == role]
        series.append(_build_series(role, style, role_costs, offset, has_intervals))
    bounds = [
        value for one in series for value in (*one.y, *one.lows, *one.highs) if value is not None
    ]
    x = build_log_axis(label, [cost for _, cost in costs], _format_cost)
    y = build_linear_axis("top-1", bounds, format_percent, minimum=0, maximum=1)
    title = f"Accuracy against {label.split(',', maxsplit=1)[0]}"
    counts = "; ".join(f"{one.name}: {len(one.x)}" for one in series)
    svg = draw_plane(
        title,
        f"Top-1 accuracy against {label}, on a logarithmic axis. Points: {counts}.",
        x,
        y,
        series,
        lines=False,
        background=_draw_front(costs, x, y, more_is_better=more_is_better),
    )
    names = {role: _name_role(role, costs) for role in styles}
    note = "More is better on both axes." if more_is_better else "Up and left is better."
    return Chart(title, svg, build_legend(styles, names), note)


def _build_series(
    role: str,
    style: SeriesStyle,
    costs: Sequence[tuple[Point, float]],
    offset: float,
    has_intervals: bool,
) -> Series:
    tooltips = [
        f"{point.run}: {point.name}, {100 * (point.top1.value or 0):.2f} %,"
        f" {format_count(round(cost))}"
        for point, cost in costs
    ]
    return Series(
        role,
        style,
        x=[cost for _, cost in costs],
        y=[point.top1.value or 0.0 for point, _ in costs],
        lows=[point.top1.low for point, _ in costs] if has_intervals else [],
        highs=[point.top1.high for point, _ in costs] if has_intervals else [],
        tooltips=tooltips,
        offset=offset,
    )


def _format_cost(value: float) -> str:
    return format_count(round(value)) if value >= 1 else format_plain(value)


def _draw_front(
    costs: Sequence[tuple[Point, float]], x: Axis, y: Axis, *, more_is_better: bool
) -> Markup:
    sign = -1 if more_is_better else 1
    front = select_pareto_front(
        [(cost, point.top1.value or 0.0) for point, cost in costs],
        cost=lambda pair: sign * pair[0],
        value=lambda pair: pair[1],
    )
    places = [locate(x, y, *pair) for pair in front]
    return Markup("").join(draw_line(*start, *end, "front") for start, end in pairwise(places))


def _name_role(role: str, costs: Sequence[tuple[Point, float]]) -> str:
    """Return the label of a role, with the name of its model if there is only one."""
    label = label_models([role])[role]
    names = {point.name for point, _ in costs if point.role == role}
    return f"{label} ({names.pop()})" if len(names) == 1 else label


def plot_methods(part: ComparisonPart) -> Iterator[Chart]:
    """Plot the value of each seed of each method, and the mean of each method."""
    accuracies = list_accuracies(part)
    accuracies = sorted(accuracies, key=lambda pair: -(pair[1].estimate.value or 0.0))
    accuracies = accuracies[:MAX_METHODS]
    if all(len(statistics.values) == 1 for _, statistics in accuracies):
        return
    seed_style, mean_style = SeriesStyle(3), SeriesStyle(1)
    title = f"{part.split} {part.metric} of each seed"
    means = "; ".join(
        f"{label}: mean {100 * (statistics.estimate.value or 0):.2f} % of {len(statistics.values)}"
        for label, statistics in accuracies
    )
    rows = []
    for label, statistics in accuracies:
        markers = [(seed_style, value) for value in statistics.values.values()]
        markers.append((mean_style, statistics.estimate.value or 0.0))
        rows.append((shorten_label(label), markers))
    yield Chart(
        title.capitalize(),
        draw_dumbbells(title, means, rows, part.metric),
        [(seed_style.draw_key(), "one seed"), (mean_style.draw_key(), "mean")],
    )


def shorten_label(label: str) -> str:
    """Keep the last part of each key: 'temperature=4' for
    'loss.soft_target.temperature=4'.
    """
    short = []
    for setting in label.split(", "):
        key, equals, value = setting.partition("=")
        short.append(key.split(".")[-1] + equals + value)
    return ", ".join(short)
