"""The section about a cascade: what routing is worth, and its curve."""

from collections.abc import Iterator

from kd_app.reporting.cascade import (
    build_curve_row,
    format_forwarded,
    select_curve,
    select_point,
    select_points,
)
from kd_app.reporting.html.charts import (
    Chart,
    Series,
    build_linear_axis,
    draw_plane,
    format_percent,
    format_plain,
)
from kd_app.reporting.html.palette import Look
from kd_app.reporting.html.tables import Cell, Table, build_cell
from kd_app.reporting.results import Cascade, Estimate, Rung

_FIRST, _BETWEEN, _LAST, _TEST = Look(1), Look(2), Look(0), Look(2)
_MEASURES = (Look(3), Look(4), Look(5), Look(2))


def build_tables(cascade: Cascade) -> list[Table]:
    """The stages, the measures compared, and the curve of the chosen one."""
    stages = [
        [
            Cell(each.file),
            build_cell(each.validation),
            build_cell(each.test),
            *(
                Cell(f"{value:.3g}")
                for value in (each.cost_ms, each.latency.mean, each.latency.p50, each.latency.p99)
            ),
        ]
        for each in cascade.stages
    ]
    rung, took = select_point(cascade), cascade.latency
    if rung is not None and took is not None:
        measured = (cascade.test.cost_ms, took.mean, took.p50, took.p99)
        alike = [Cell(f"{100 * each.accuracy:.2f} %") for each in (rung, cascade.test)]
        stages.append([Cell("the cascade"), *alike, *(Cell(f"{value:.3g}") for value in measured)])
    heads = ["", "validation top-1", "test top-1", "ms, expected", "ms, measured", "p50", "p99"]
    compared = [
        [
            Cell(each.measure),
            *(
                Cell(said)
                for said in _measure(each.rungs[each.chosen] if each.chosen is not None else None)
            ),
        ]
        for each in cascade.curves
    ]
    curve = select_curve(cascade)
    rows = [
        [Cell(said) for said in build_curve_row(cascade, each)] for each in select_points(curve)
    ]
    return [
        Table(
            "Stages, from cheap to dear: accuracy, and milliseconds of an image on one thread",
            heads,
            stages,
        ),
        Table(
            "Measures of confidence, each at its cheapest proven threshold",
            ["", "sent on", "top-1", "ms, expected"],
            compared,
        ),
        Table(
            f"The curve on validation, by {curve.measure}",
            ["sent on", "top-1", "loss, points", "ms, expected", "margin"],
            rows,
            frozenset({4}),
            frozenset(row for row, each in enumerate(select_points(curve)) if each == rung),
        ),
    ]


def _measure(rung: Rung | None) -> tuple[str, str, str]:
    return (
        ("none proven", "", "")
        if rung is None
        else (format_forwarded(rung), f"{100 * rung.accuracy:.2f} %", f"{rung.cost_ms:.3g}")
    )


def build_charts(cascade: Cascade) -> Iterator[Chart]:
    """Accuracy against the share that is sent on, by every measure; and against the
    cost, by the chosen one.
    """
    yield _plot_by_share(cascade)
    yield _plot_by_cost(cascade)


def _plot_by_share(cascade: Cascade) -> Chart:
    title = "Accuracy by the share that is sent on"
    series = [
        Series(
            each.measure,
            look,
            [rung.shares[1] for rung in each.rungs],
            [rung.accuracy for rung in each.rungs],
            titles=_build_titles(each.rungs),
        )
        for each, look in zip(cascade.curves, _MEASURES, strict=False)
    ]
    x = build_linear_axis(
        "share that the first stage sends on", [0.0, 1.0], format_percent, least=0, most=1
    )
    y = build_linear_axis(
        "top-1 on validation",
        [value for each in series for value in each.y],
        format_percent,
        least=0,
        most=1,
    )
    ends = "; ".join(
        f"{each.name}: {100 * each.y[0]:.2f} % where all is sent on, {100 * each.y[-1]:.2f} % where"
        " nothing is"
        for each in series
    )
    svg = draw_plane(
        title,
        f"Top-1 of the cascade by the share of the images that the first stage sends on. {ends}.",
        x,
        y,
        series,
        lines=True,
    )
    return Chart(
        title,
        svg,
        [(each.look.draw_key(), each.name) for each in series],
        "Left: the first stage alone. Right: the last stage alone.",
    )


def _plot_by_cost(cascade: Cascade) -> Chart:
    title, curve, took = "Accuracy by what an image costs", select_curve(cascade), cascade.latency
    look, rungs = _look(cascade), curve.rungs
    name = f"cascade by {curve.measure}, expected"
    drawn = [
        Series(
            name,
            look,
            [each.cost_ms for each in rungs],
            [each.accuracy for each in rungs],
            titles=_build_titles(rungs),
        )
    ]
    drawn += [
        _build_point(f"{each.file} alone", at, each.cost_ms, each.validation)
        for each, at in zip(
            cascade.stages, [_FIRST, *[_BETWEEN] * (len(cascade.stages) - 2), _LAST], strict=True
        )
    ]
    if took is not None:
        drawn.append(
            _build_point(
                "chosen: on test, measured", _TEST, took.mean, Estimate(value=cascade.test.accuracy)
            )
        )
    x = build_linear_axis(
        "milliseconds of an image, mean",
        [value for each in drawn for value in each.x],
        format_plain,
        least=0,
    )
    y = build_linear_axis(
        "top-1",
        [
            value
            for each in drawn
            for value in (*each.y, *each.lows, *each.highs)
            if value is not None
        ],
        format_percent,
        least=0,
        most=1,
    )
    ends = "; ".join(
        f"{each.file}: {100 * (each.validation.value or 0):.2f} % at {each.cost_ms:.3g} ms"
        for each in cascade.stages
    )
    svg = draw_plane(title, f"Top-1 by the mean time of an image. {ends}.", x, y, drawn, lines=True)
    note = (
        "Up and left is better. On validation, but for what was chosen. Where all is sent on, a"
        " cascade costs more than its last stage alone."
    )
    return Chart(title, svg, [(each.look.draw_key(), each.name) for each in drawn], note)


def _look(cascade: Cascade) -> Look:
    """That of the measure that was chosen."""
    return _MEASURES[[each.measure for each in cascade.curves].index(cascade.measure)]


def _build_point(name: str, look: Look, cost: float, top1: Estimate) -> Series:
    value = top1.value or 0.0
    return Series(
        name,
        look,
        [cost],
        [value],
        [top1.low],
        [top1.high],
        [f"{name}: {100 * value:.2f} %, {cost:.3g} ms"],
    )


def _build_titles(rungs: list[Rung]) -> list[str]:
    return [
        f"{format_forwarded(each)} sent on: {100 * each.accuracy:.2f} %, {each.cost_ms:.3g} ms"
        for each in rungs
    ]
