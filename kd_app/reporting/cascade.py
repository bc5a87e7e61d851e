"""Sentences and console tables about a cascade: whether routing saves cost."""

from collections.abc import Sequence
from typing import Final

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kd_app.reporting.cascade_results import CascadeRecord, LatencyStats, RoutingCurve, Rung
from kd_app.reporting.results import Results
from kd_app.reporting.sentences import (
    format_interval,
    format_margin,
    format_percent,
    format_points,
    write_verdict,
)

SHOWN: Final = 10
"""Steps between the rows of a routing curve in a table."""


def write_answer(cascade: CascadeRecord) -> str:
    """The recommendation to route or not to route, with the reason."""
    first, last = cascade.stages[0], cascade.stages[-1]
    proof = (
        f"shown on {cascade.num_images:,} validation images, at {100 * cascade.confidence:g} %"
        f" confidence, to lose at most {format_margin(cascade.margin)} of top-1 against {last.file}"
    )
    if cascade.answer == "last":
        return (
            f"Do not route: no threshold is {proof} and to cost less than {last.file} alone. Use"
            f" {last.file}."
        )
    if cascade.answer == "first":
        return (
            f"Do not route: {first.file} alone is {proof}, and nothing else with that proof costs"
            f" less. Use {first.file}."
        )
    rung, latency = select_point(cascade), cascade.latency
    assert rung is not None
    saving = format_times(last.cost_ms, rung.cost_ms)
    if latency is not None and latency.mean >= last.latency.mean:
        return (
            f"Do not route: forwarding {format_percent(rung.shares[1])} of the images is {proof}"
            f" and should cost {saving} less, but measured end to end an image takes"
            f" {latency.mean:.3g} ms, and {last.latency.mean:.3g} ms with {last.file} alone."
        )
    return (
        f"Route: {first.file} alone classifies {format_percent(1 - rung.shares[1])} of the images."
        f" The cascade costs {saving} less than {last.file} and is {proof}."
    )


def format_times(more: float, less: float) -> str:
    """'3.4 times'; 'many times' for nothing, which only a changed record has."""
    return f"{more / less:.3g} times" if less > 0 else "many times"


def _compare_amounts(reference: float, amount: float) -> str:
    """'3.4 times less than', '1.2 times as much as'."""
    if amount < reference:
        return f"{format_times(reference, amount)} less than"
    return f"{format_times(amount, reference)} as much as"


def select_curve(cascade: CascadeRecord) -> RoutingCurve:
    """The curve of the chosen measure."""
    return next(curve for curve in cascade.curves if curve.measure == cascade.measure)


def select_point(cascade: CascadeRecord) -> Rung | None:
    """The chosen rung on validation; None if the last stage is recommended alone."""
    curve = select_curve(cascade)
    return None if curve.chosen is None else curve.rungs[curve.chosen]


def write_details(results: Results, cascade: CascadeRecord) -> list[str]:
    """The evidence for the answer: test accuracy, verdict, expected and measured cost,
    what is not proven, and how thresholds were chosen.
    """
    last, test = cascade.stages[-1], cascade.test
    subject = "the cascade" if cascade.answer == "cascade" else f"{cascade.stages[0].file} alone"
    sentences = []
    split = cascade.splits.get("test")
    if split is not None:
        sentences.append(
            f"On {split.num_images:,} test images {subject} gets {format_percent(test.accuracy)}"
            f" right, {last.file} {format_percent(last.test.value)}. Right only with {subject}:"
            f" {test.better:,}; only with {last.file}: {test.worse:,}."
        )
    if results.verdict is not None:
        sentences.append(write_verdict(results.verdict, subject, last.file))
    if cascade.latency is not None:
        sentences.append(_describe_latency(cascade, cascade.latency))
    if cascade.answer == "last":
        sentences.append(_describe_unproven(cascade))
    num_measures = len(cascade.curves)
    measures = "one measure"
    if num_measures > 1:
        measures = f"{num_measures} measures, at a level at which all claims hold together"
    sentences.append(
        f"Thresholds were chosen on validation with {measures}; temperatures were fitted on the"
        " same images. The test set was read once. All costs are of this machine:"
        f" {results.environment.get('device', 'unknown')}."
    )
    return sentences


def _describe_latency(cascade: CascadeRecord, latency: LatencyStats) -> str:
    last = cascade.stages[-1]
    return (
        f"A test image takes {latency.mean:.3g} ms on average ({latency.num_images:,} images,"
        " measured end to end on one thread, resizing and cropping included; expected from the"
        f" stages: {cascade.test.cost_ms:.3g} ms),"
        f" {_compare_amounts(last.latency.mean, latency.mean)} {last.file}. p50"
        f" {latency.p50:.3g} ms, p99 {latency.p99:.3g} ms; {last.file}: p50"
        f" {last.latency.p50:.3g} ms, p99 {last.latency.p99:.3g} ms."
    )


def _describe_unproven(cascade: CascadeRecord) -> str:
    """The cheapest rung that keeps the margin on these images, without a proof."""
    last, max_lost = cascade.stages[-1], cascade.margin * cascade.num_images
    candidates = [
        (rung.cost_ms, curve.measure, rung)
        for curve in cascade.curves
        for rung in curve.rungs
        if rung.worse - rung.better <= max_lost
    ]
    cost, measure, rung = min(candidates, key=lambda candidate: candidate[0])
    if cost >= last.cost_ms:
        return (
            "No threshold that keeps the margin on these images costs less than"
            f" {last.file} ({last.cost_ms:.3g} ms)."
        )
    return (
        f"The cheapest threshold that keeps the margin on these images ({measure}) would forward"
        f" {format_percent(rung.shares[1])} and take {cost:.3g} ms instead of"
        f" {last.cost_ms:.3g} ms, but {cascade.num_images:,} images are too few for a proof."
    )


def build_cascade_tables(results: Results) -> list[RenderableType]:
    """Tables of stages, measures and the curve, then the answer and the evidence."""
    cascade = results.cascade
    assert cascade is not None
    return [
        _build_stages_table(cascade),
        _build_measures_table(cascade),
        _build_curve_table(cascade),
        Text(write_answer(cascade)),
        *map(Text, write_details(results, cascade)),
    ]


def _build_table(title: str, heads: Sequence[str]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style=""
    )
    table.add_column(heads[0], overflow="fold")
    for head in heads[1:]:
        table.add_column(head, justify="right")
    return table


def _build_stages_table(cascade: CascadeRecord) -> Table:
    table = _build_table(
        "Stages, cheapest first",
        ["stage", "validation", "test", "interval", "ms, mean", "p50", "p99"],
    )
    for stage in cascade.stages:
        table.add_row(
            stage.file,
            format_percent(stage.validation.value),
            format_percent(stage.test.value),
            format_interval(stage.test.low, stage.test.high),
            *_format_latency(stage.latency),
        )
    if cascade.latency is not None:
        rung = select_point(cascade)
        assert rung is not None
        table.add_row(
            "the cascade",
            format_percent(rung.accuracy),
            format_percent(cascade.test.accuracy),
            "",
            *_format_latency(cascade.latency),
        )
    return table


def _format_latency(latency: LatencyStats) -> tuple[str, str, str]:
    return f"{latency.mean:.3g}", f"{latency.p50:.3g}", f"{latency.p99:.3g}"


def _build_measures_table(cascade: CascadeRecord) -> Table:
    table = _build_table(
        "Measures of confidence on validation, each at its cheapest proven threshold",
        ["measure", "forwarded", "top-1", "ms, expected"],
    )
    for curve in cascade.curves:
        if curve.chosen is None:
            table.add_row(f"  {curve.measure}", "none", "", "")
            continue
        rung = curve.rungs[curve.chosen]
        table.add_row(
            f"{'*' if curve.measure == cascade.measure else ' '} {curve.measure}",
            format_forwarded(rung),
            format_percent(rung.accuracy),
            f"{rung.cost_ms:.3g}",
        )
    return table


def format_forwarded(rung: Rung) -> str:
    """The shares of images that reach the second and each further stage."""
    return ", ".join(format_percent(share) for share in rung.shares[1:])


def select_points(curve: RoutingCurve) -> list[Rung]:
    """Evenly spaced rungs, including both ends and the chosen rung."""
    last = len(curve.rungs) - 1
    rows = {round(last * step / SHOWN) for step in range(SHOWN + 1)}
    if curve.chosen is not None:
        rows.add(curve.chosen)
    return [curve.rungs[row] for row in sorted(rows)]


def _build_curve_table(cascade: CascadeRecord) -> Table:
    curve = select_curve(cascade)
    table = _build_table(
        f"Routing curve on validation, by {curve.measure}",
        ["forwarded", "top-1", "loss, points", "ms, expected", "margin kept"],
    )
    for rung in select_points(curve):
        table.add_row(*build_curve_row(cascade, rung))
    return table


def build_curve_row(cascade: CascadeRecord, rung: Rung) -> tuple[str, str, str, str, str]:
    """A rung: shares forwarded, accuracy, loss in points, cost, and whether the margin
    is proven; the chosen rung has a star.
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
