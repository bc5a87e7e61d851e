"""Section about a cascade: accuracy and cost of routing."""

from collections.abc import Iterator

from kd_app.reporting.cascade import (
    build_curve_row,
    format_forwarded,
    select_curve,
    select_point,
    select_points,
)
from kd_app.reporting.cascade_results import CascadeRecord, RoutingCurve, Rung
from kd_app.reporting.html.charts import (
    Chart,
    Series,
    build_linear_axis,
    draw_plane,
    format_percent,
    format_plain,
)
from kd_app.reporting.html.palette import SeriesStyle
from kd_app.reporting.html.tables import Cell, Table, build_cell
from kd_app.reporting.metrics import Estimate

_FIRST, _BETWEEN, _LAST, _TEST = SeriesStyle(1), SeriesStyle(2), SeriesStyle(0), SeriesStyle(2)
_MEASURES = (SeriesStyle(3), SeriesStyle(4), SeriesStyle(5), SeriesStyle(2))


def build_tables(cascade: CascadeRecord) -> list[Table]:
    """Build the tables of the stages, of the measures of confidence, and of the curve
    of the selected measure.
    """
    return [
        _build_stages_table(cascade),
        _build_measures_table(cascade),
        _build_curve_table(cascade),
    ]


def _build_stages_table(cascade: CascadeRecord) -> Table:
    rows = []
    for stage in cascade.stages:
        latency = stage.latency
        costs = (stage.cost_ms, latency.mean, latency.p50, latency.p99)
        accuracies = [build_cell(stage.validation), build_cell(stage.test)]
        rows.append([Cell(stage.file), *accuracies, *(Cell(f"{cost:.3g}") for cost in costs)])
    rung = select_point(cascade)
    if rung is not None and cascade.latency is not None:
        latency = cascade.latency
        costs = (cascade.test.cost_ms, latency.mean, latency.p50, latency.p99)
        accuracies = [Cell(f"{100 * point.accuracy:.2f} %") for point in (rung, cascade.test)]
        rows.append([Cell("the cascade"), *accuracies, *(Cell(f"{cost:.3g}") for cost in costs)])
    return Table(
        "Stages, from cheapest to most expensive: accuracy, and milliseconds per image on one"
        " thread",
        ["", "validation top-1", "test top-1", "ms, expected", "ms, measured", "p50", "p99"],
        rows,
    )


def _build_measures_table(cascade: CascadeRecord) -> Table:
    return Table(
        "Measures of confidence, each at its cheapest proven threshold",
        ["", "forwarded", "top-1", "ms, expected"],
        [_build_measure_row(curve) for curve in cascade.curves],
    )


def _build_measure_row(curve: RoutingCurve) -> list[Cell]:
    if curve.chosen is None:
        return [Cell(curve.measure), Cell("none proven"), Cell(""), Cell("")]
    rung = curve.rungs[curve.chosen]
    return [
        Cell(curve.measure),
        Cell(format_forwarded(rung)),
        Cell(f"{100 * rung.accuracy:.2f} %"),
        Cell(f"{rung.cost_ms:.3g}"),
    ]


def _build_curve_table(cascade: CascadeRecord) -> Table:
    curve, selected = select_curve(cascade), select_point(cascade)
    rungs = select_points(curve)
    return Table(
        f"The curve on validation, by {curve.measure}",
        ["forwarded", "top-1", "loss, points", "ms, expected", "margin"],
        [[Cell(text) for text in build_curve_row(cascade, rung)] for rung in rungs],
        frozenset({4}),
        frozenset(number for number, rung in enumerate(rungs) if rung == selected),
    )


def build_charts(cascade: CascadeRecord) -> Iterator[Chart]:
    """Build two charts: accuracy against the forwarded share for every measure, and
    accuracy against cost for the selected measure.
    """
    yield _plot_by_share(cascade)
    yield _plot_by_cost(cascade)


def _plot_by_share(cascade: CascadeRecord) -> Chart:
    title = "Accuracy by forwarded share"
    series = [
        Series(
            curve.measure,
            style,
            [rung.shares[1] for rung in curve.rungs],
            [rung.accuracy for rung in curve.rungs],
            tooltips=_build_tooltips(curve.rungs),
        )
        for curve, style in zip(cascade.curves, _MEASURES, strict=False)
    ]
    x = build_linear_axis(
        "share that the first stage forwards", [0.0, 1.0], format_percent, minimum=0, maximum=1
    )
    accuracies = [value for one in series for value in one.y]
    y = build_linear_axis("top-1 on validation", accuracies, format_percent, minimum=0, maximum=1)
    ends = "; ".join(
        f"{one.name}: {100 * one.y[0]:.2f} % if all images are forwarded, {100 * one.y[-1]:.2f} %"
        " if none is"
        for one in series
    )
    description = (
        f"Top-1 of the cascade by the share of the images that the first stage forwards. {ends}."
    )
    return Chart(
        title,
        draw_plane(title, description, x, y, series, lines=True),
        [(one.style.draw_key(), one.name) for one in series],
        "Left: the first stage alone. Right: the last stage alone.",
    )


def _plot_by_cost(cascade: CascadeRecord) -> Chart:
    title = "Accuracy by cost per image"
    series = _build_cost_series(cascade)
    x = build_linear_axis(
        "milliseconds per image, mean",
        [value for one in series for value in one.x],
        format_plain,
        minimum=0,
    )
    bounds = [
        value for one in series for value in (*one.y, *one.lows, *one.highs) if value is not None
    ]
    y = build_linear_axis("top-1", bounds, format_percent, minimum=0, maximum=1)
    stages = "; ".join(
        f"{stage.file}: {100 * (stage.validation.value or 0):.2f} % at {stage.cost_ms:.3g} ms"
        for stage in cascade.stages
    )
    description = f"Top-1 by the mean time per image. {stages}."
    note = (
        "Up and left is better. On validation, except for the point on test. If all images are"
        " forwarded, a cascade costs more than its last stage alone."
    )
    return Chart(
        title,
        draw_plane(title, description, x, y, series, lines=True),
        [(one.style.draw_key(), one.name) for one in series],
        note,
    )


def _build_cost_series(cascade: CascadeRecord) -> list[Series]:
    """Build the curve of the selected measure, a point for each stage, and the point of
    the cascade as measured on test.
    """
    curve = select_curve(cascade)
    series = [
        Series(
            f"cascade by {curve.measure}, expected",
            _MEASURES[cascade.curves.index(curve)],
            [rung.cost_ms for rung in curve.rungs],
            [rung.accuracy for rung in curve.rungs],
            tooltips=_build_tooltips(curve.rungs),
        )
    ]
    styles = [_FIRST, *[_BETWEEN] * (len(cascade.stages) - 2), _LAST]
    series += [
        _build_point(f"{stage.file} alone", style, stage.cost_ms, stage.validation)
        for stage, style in zip(cascade.stages, styles, strict=True)
    ]
    if cascade.latency is not None:
        accuracy = Estimate(value=cascade.test.accuracy)
        name = "selected threshold: on test, measured"
        series.append(_build_point(name, _TEST, cascade.latency.mean, accuracy))
    return series


def _build_point(name: str, style: SeriesStyle, cost: float, top1: Estimate) -> Series:
    value = top1.value or 0.0
    tooltip = f"{name}: {100 * value:.2f} %, {cost:.3g} ms"
    return Series(name, style, [cost], [value], [top1.low], [top1.high], [tooltip])


def _build_tooltips(rungs: list[Rung]) -> list[str]:
    return [
        f"{format_forwarded(rung)} forwarded: {100 * rung.accuracy:.2f} %, {rung.cost_ms:.3g} ms"
        for rung in rungs
    ]
