"""What a cascade is worth, in sentences and as tables for people."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kd_app.reporting.results import Cascade, Results, RoutingCurve, Rung
from kd_app.reporting.sentences import (
    format_interval,
    format_margin,
    format_percent,
    format_points,
    write_verdict,
)

SHOWN = 10
"""Steps of a curve in a table."""


def write_answer(cascade: Cascade) -> str:
    """Route, or do not, in a sentence."""
    first, last = cascade.stages[0], cascade.stages[-1]
    shown = (
        f"shown on {cascade.num_images:,} validation images, at {100 * cascade.confidence:g} %, to"
        f" lose at most {format_margin(cascade.margin)}"
    )
    if cascade.answer == "last":
        return (
            f"Do not route: no threshold is {shown} of top-1 against {last.file} and to cost less"
            f" than it alone. Use {last.file}."
        )
    if cascade.answer == "first":
        return (
            f"Do not route: {first.file} alone is {shown} of top-1 against {last.file}, and nothing"
            f" else that is costs less. Use {first.file}."
        )
    chosen, took = select_point(cascade), cascade.latency
    assert chosen is not None
    if took is not None and took.mean is not None and took.mean >= last.latency.mean:
        return (
            f"Do not route: sending {format_percent(chosen.shares[1])} of the images on is {shown} of"
            f" top-1, and should cost {format_times(last.cost_ms, chosen.cost_ms)} less than {last.file},"
            f" but measured end to end an image takes {took.mean:.3g} ms, and {last.file} alone"
            f" {last.latency.mean:.3g} ms."
        )
    return (
        f"Route: {first.file} answers {format_percent(1 - chosen.shares[1])} of the images alone, at"
        f" {format_times(last.cost_ms, chosen.cost_ms)} less than {last.file} costs, {shown} of top-1."
    )


def format_times(more: float, less: float) -> str:
    """'3.4 times'."""
    return f"{more / less:.3g} times"


def _compare_amounts(theirs: float, ours: float) -> str:
    """'3.4 times less than', '1.2 times as much as'."""
    return (
        f"{format_times(theirs, ours)} less than"
        if ours < theirs
        else f"{format_times(ours, theirs)} as much as"
    )


def select_curve(cascade: Cascade) -> RoutingCurve:
    """The curve of the measure that was chosen."""
    return next(each for each in cascade.curves if each.measure == cascade.measure)


def select_point(cascade: Cascade) -> Rung | None:
    """The chosen rung on validation; None where the last stage is to be used alone."""
    curve = select_curve(cascade)
    return None if curve.chosen is None else curve.rungs[curve.chosen]


def write_details(results: Results, cascade: Cascade) -> list[str]:
    """What the answer rests on: test, cost computed and measured, and what is not
    shown.
    """
    found, last, alike = [], cascade.stages[-1], cascade.test
    what = "the cascade" if cascade.answer == "cascade" else f"{cascade.stages[0].file} alone"
    split = cascade.splits.get("test")
    if split is not None:
        better = (
            f"{alike.better:,} images that only {what} has right, {alike.worse:,} that only"
            f" {last.file} has"
        )
        found.append(
            f"On {split.num_images:,} test images {what} has {format_percent(alike.accuracy)} right,"
            f" {last.file} {format_percent(last.test.value)}: {better}."
        )
    if results.verdict is not None:
        found.append(write_verdict(results.verdict, what, last.file))
    if cascade.latency is not None:
        whole = cascade.latency
        found.append(
            f"Of {whole.num_images:,} test images, one at a time on one thread, resizing and"
            f" cropping included, one takes {whole.mean:.3g} ms (mean, measured end to end;"
            f" expected from the stages: {alike.cost_ms:.3g} ms):"
            f" {_compare_amounts(last.latency.mean, whole.mean)} {last.file}. p50 {whole.p50:.3g} ms, p99"
            f" {whole.p99:.3g} ms; {last.file}: p50 {last.latency.p50:.3g} ms, p99"
            f" {last.latency.p99:.3g} ms."
        )
    if cascade.answer == "last":
        found += _list_unproven(cascade)
    several = (
        f"{len(cascade.curves)} measures, each tested at a higher level so that all hold together"
        if len(cascade.curves) > 1
        else "one measure"
    )
    found.append(
        f"Chosen on validation by {several}; temperatures were fitted on the same images. Test was"
        " read once. The costs are of this machine:"
        f" {results.environment.get('device', 'unknown')}."
    )
    return found


def _list_unproven(cascade: Cascade) -> Iterator[str]:
    """The cheapest rung whose loss on these images is within the margin, though nothing
    is shown.
    """
    last, allowed = cascade.stages[-1], cascade.margin * cascade.num_images
    kept = [
        (rung.cost_ms, each.measure, rung)
        for each in cascade.curves
        for rung in each.rungs
        if rung.worse - rung.better <= allowed
    ]
    cost, measure, rung = min(kept, key=lambda each: each[0])
    if cost < last.cost_ms:
        yield (
            f"The cheapest that loses no more than the margin on these images ({measure}) would"
            f" send on {format_percent(rung.shares[1])} and take {cost:.3g} ms in place of"
            f" {last.cost_ms:.3g} ms; {cascade.num_images:,} images are too few to show that it"
            " keeps the margin."
        )
    else:
        yield (
            "Whatever loses no more than the margin on these images costs at least the"
            f" {last.cost_ms:.3g} ms of {last.file}."
        )


def build_cascade_tables(results: Results) -> list[RenderableType]:
    """Stages, measures and the curve, then what they mean."""
    cascade = results.cascade
    assert cascade is not None
    return [
        _build_stages_table(cascade),
        _build_measures_table(cascade),
        _build_curve_table(cascade),
        *(Text(said) for said in (write_answer(cascade), *write_details(results, cascade))),
    ]


def _build_table(title: str, heads: Sequence[str]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style=""
    )
    table.add_column(heads[0], overflow="fold")
    for head in heads[1:]:
        table.add_column(head, justify="right")
    return table


def _build_stages_table(cascade: Cascade) -> Table:
    table = _build_table(
        "Stages, from cheap to dear",
        ["stage", "validation", "test", "interval", "ms, mean", "p50", "p99"],
    )
    for each in cascade.stages:
        took = each.latency
        figures = (
            format_percent(each.validation.value),
            format_percent(each.test.value),
            format_interval(each.test.low, each.test.high),
        )
        table.add_row(each.file, *figures, f"{took.mean:.3g}", f"{took.p50:.3g}", f"{took.p99:.3g}")
    if cascade.latency is not None:
        took, rung = cascade.latency, select_point(cascade)
        assert rung is not None
        measured = (
            format_percent(rung.accuracy),
            format_percent(cascade.test.accuracy),
            "",
            f"{took.mean:.3g}",
            f"{took.p50:.3g}",
            f"{took.p99:.3g}",
        )
        table.add_row("the cascade", *measured)
    return table


def _build_measures_table(cascade: Cascade) -> Table:
    table = _build_table(
        "Measures of confidence on validation, each at its cheapest proven threshold",
        ["measure", "sent on", "top-1", "ms, expected"],
    )
    for each in cascade.curves:
        rung = each.rungs[each.chosen] if each.chosen is not None else None
        mark = "* " if each.measure == cascade.measure and rung is not None else "  "
        table.add_row(
            f"{mark}{each.measure}",
            *(
                (format_forwarded(rung), format_percent(rung.accuracy), f"{rung.cost_ms:.3g}")
                if rung
                else ("none", "", "")
            ),
        )
    return table


def format_forwarded(rung: Rung) -> str:
    """The shares that reach the second stage and those behind it."""
    return ", ".join(format_percent(share) for share in rung.shares[1:])


def select_points(curve: RoutingCurve) -> list[Rung]:
    """Evenly spread rungs, both ends and the chosen one among them."""
    last = len(curve.rungs) - 1
    rows = {round(last * step / SHOWN) for step in range(SHOWN + 1)} | (
        {curve.chosen} if curve.chosen is not None else set()
    )
    return [curve.rungs[row] for row in sorted(rows)]


def _build_curve_table(cascade: Cascade) -> Table:
    curve = select_curve(cascade)
    table = _build_table(
        f"The curve on validation, by {curve.measure}",
        ["sent on", "top-1", "loss, points", "ms, expected", "margin kept"],
    )
    for rung in select_points(curve):
        table.add_row(*build_curve_row(cascade, rung))
    return table


def build_curve_row(cascade: Cascade, rung: Rung) -> tuple[str, str, str, str, str]:
    """A rung: what is sent on, accuracy, loss in points, cost, and whether it is shown
    to keep the margin; the chosen one has a star.
    """
    mark = " *" if rung == select_point(cascade) else ""
    loss = format_points((rung.worse - rung.better) / cascade.num_images)
    return (
        format_forwarded(rung),
        format_percent(rung.accuracy),
        loss,
        f"{rung.cost_ms:.3g}",
        f"{'shown' if rung.proven else 'not shown'}{mark}",
    )
