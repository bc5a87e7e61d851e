"""Console tables about runs and sweeps, readable at 80 columns and without color."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kd_app.metrics.model_metrics import MODEL_METRICS
from kd_app.reporting.distillation_gain import describe_gains
from kd_app.reporting.embedding_table import (
    EmbeddingTable,
    build_embedding_table,
    list_embedding_sentences,
)
from kd_app.reporting.metrics import ModelMetrics, Split
from kd_app.reporting.results import CompressionStep, ModelRecord, Results
from kd_app.reporting.selection import Score, read_selection
from kd_app.reporting.sentences import (
    build_pair_rows,
    format_count,
    format_difference,
    format_interval,
    format_metric,
    format_percent,
    format_points,
    write_sentences,
)
from kd_app.run_files import RESULTS

_CONFIDENCE: Final = 0.95
"""In the head of a sweep's table if no trial has metrics."""


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep: its number, its overrides, and its results, None if it was
    refused or they can't be read. refusal: the reason of a refused trial.
    """

    number: int
    overrides: tuple[str, ...]
    results: Results | None
    refusal: str = ""

    @property
    def status(self) -> str:
        """The status of the run, or 'refused' or 'unreadable'."""
        if self.results:
            return self.results.status
        return "refused" if self.refusal else "unreadable"

    @property
    def reason(self) -> str:
        """Why the trial has no results to rank; empty for one that has."""
        if self.results:
            return (self.results.reason or "") if self.results.status == "failed" else ""
        return self.refusal or f"its {RESULTS} is missing or damaged."

    @property
    def validation(self) -> Split | None:
        """The metrics on validation, None if there are none."""
        return self.results.validation if self.results else None


def build_summary(results: Results) -> RenderableType:
    """Tables of the models, of the student against teacher and controls, and of the
    controls; then the sentences about them.
    """
    split = results.test or results.validation
    embedding = build_embedding_table(results)
    if embedding is not None:
        return _build_embedding_summary(results, embedding)
    if split is None:
        reason = f" {results.reason}" if results.reason else ""
        return Text(f"Nothing is measured yet: the run's status is '{results.status}'.{reason}")
    parts: list[RenderableType] = [_build_models_table(results, split)]
    rows = build_pair_rows(split)
    if rows:
        parts.append(_build_pair_table(rows, split.confidence))
    if set(split.gains) - {"labels_only"}:
        parts.append(_build_controls_table(results, split))
    sentences = [*results.cautions, *describe_gains(results), *write_sentences(results, split)]
    return Group(*parts, *map(Text, sentences))


def _build_embedding_summary(results: Results, content: EmbeddingTable) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for head in content.heads:
        table.add_column(head, justify="right", overflow="fold")
    for name, cells in content.rows:
        table.add_row(name, *cells)
    notes = [f"Note: {note}" for note in results.notes]
    sentences = [*results.cautions, *list_embedding_sentences(results), *notes]
    return Group(table, *map(Text, sentences))


def _name_interval(confidence: float) -> str:
    return f"{100 * confidence:g} % interval"


def _build_models_table(results: Results, split: Split) -> Table:
    metrics = {
        role: each
        for role, each in (
            ("teacher", split.teacher),
            ("labels_only", split.labels_only),
            ("student", split.student),
        )
        if each is not None
    }
    heads = {
        "teacher": "teacher",
        "labels_only": "labels only",
        "student": "distilled" if split.teacher or split.labels_only else "student",
    }
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for role in metrics:
        table.add_column(heads[role], justify="right", overflow="fold")
    models = [results.models.get(role) for role in metrics]
    table.add_row("model", *(model.name if model else "" for model in models))
    _add_metric_rows(table, metrics, split.confidence)
    params = [model.params if model else None for model in models]
    macs = [model.macs if model else None for model in models]
    table.add_row("parameters", *map(format_count, params))
    table.add_row("multiply-adds", *map(format_count, macs))
    table.add_row("size on disk", *map(_format_size, models))
    table.add_row("license", *(model.license if model else "unknown" for model in models))
    table.add_row("images per second", *(_format_speed(results, role) for role in metrics))
    return table


def _add_metric_rows(table: Table, metrics: Mapping[str, ModelMetrics], confidence: float) -> None:
    for spec in MODEL_METRICS:
        if "console" not in spec.places:
            continue
        cells = [format_metric(each.look_up(spec.name), spec.format) for each in metrics.values()]
        table.add_row(spec.label, *(value for value, _ in cells))
        table.add_row(f"  {_name_interval(confidence)}", *(bounds for _, bounds in cells))


def build_waterfall(steps: Sequence[CompressionStep]) -> Table:
    """One row per step of a compression: accuracy on validation, points lost against
    the step before, and costs; the alternative network last.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("step")
    interval = _name_interval(_CONFIDENCE)
    for head in ("top-1", interval, "lost", "multiply-adds", "parameters", "size", "latency"):
        table.add_column(head, justify="right")
    for step in steps:
        lost = step.lost.value if step.lost else None
        table.add_row(
            step.name,
            format_percent(step.top1.value),
            format_interval(step.top1.low, step.top1.high),
            "" if lost is None else format_points(lost),
            format_count(step.macs),
            format_count(step.params),
            f"{format_count(step.size_bytes)}B",
            "unknown" if step.latency_ms is None else f"{step.latency_ms:.3g} ms",
        )
    return table


def _build_controls_table(results: Results, split: Split) -> Table:
    """One row per control: its accuracy, and the gain of distillation over it."""
    interval = _name_interval(split.confidence)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("control", overflow="fold")
    for head in ("top-1", interval, "gain", interval):
        table.add_column(head, justify="right")
    student = results.models.get("student")
    for control, gain in split.gains.items():
        model = results.models.get(control)
        network = f" ({model.name})" if model and student and model.name != student.name else ""
        table.add_row(
            f"{control.replace('_', ' ')}{network}",
            *_format_top1(split.by_model[control]),
            *format_difference(gain.value, gain.low, gain.high),
        )
    return table


def _build_pair_table(rows: Sequence[tuple[str, str, str, str]], confidence: float) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("distilled")
    table.add_column("", justify="right")
    table.add_column(_name_interval(confidence), justify="right")
    table.add_column("meaning")
    for row in rows:
        table.add_row(*row)
    return table


def _format_size(model: ModelRecord | None) -> str:
    return f"{format_count(model.size_bytes)}B" if model else "unknown"


def _format_speed(results: Results, role: str) -> str:
    # The control is the student's network with other weights and is not timed again.
    if role == "labels_only":
        return "as distilled"
    speed = results.speed.teacher if role == "teacher" else results.speed.student
    if speed is None or speed.images_per_second is None:
        return "unknown"
    return f"{speed.images_per_second:,.0f}"


def build_sweep_table(trials: Sequence[Trial], *, winner: int | None) -> RenderableType:
    """The trials of a sweep, best on validation first, with a star at the winner; then
    sentences about trials without a result, the winner's test accuracy and the
    licenses.
    """
    scores = {trial.number: read_selection(trial.results) for trial in trials}
    ordered = sorted(trials, key=lambda trial: (_rank(scores[trial.number]), trial.number))
    measured = next((score for score in scores.values() if score is not None), None)
    title = measured.title if measured else "top-1"
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title=f"Validation {title} of each trial, best first",
        title_justify="left",
        title_style="",
    )
    table.add_column("trial", justify="right")
    table.add_column("overrides", overflow="fold")
    table.add_column("status")
    table.add_column(title, justify="right")
    confidence = measured.confidence if measured else _CONFIDENCE
    table.add_column(_name_interval(confidence), justify="right")
    for trial in ordered:
        table.add_row(
            f"* {trial.number}" if trial.number == winner else str(trial.number),
            Text("\n".join(trial.overrides)),  # Text: brackets in overrides are no markup
            trial.status,
            *_format_score(scores[trial.number]),
        )
    sentences = [
        *_describe_reasons(trials),
        _describe_winner(trials, winner),
        *_describe_licenses(ordered),
    ]
    return Group(table, *map(Text, sentences))


def _describe_reasons(trials: Sequence[Trial]) -> list[str]:
    """Why trials failed or were refused; a reason of several trials once."""
    numbers: dict[tuple[str, str], list[str]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.reason:
            numbers.setdefault((trial.status, trial.reason), []).append(str(trial.number))
    return [
        f"{'Trial' if len(those) == 1 else 'Trials'} {', '.join(those)} {status}: {reason}"
        for (status, reason), those in numbers.items()
    ]


def _describe_licenses(trials: Sequence[Trial]) -> list[str]:
    by_license: dict[str, list[str]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.results and trial.results.license:
            by_license.setdefault(trial.results.license.ships, []).append(str(trial.number))
    if not by_license:
        return []
    if len(by_license) == 1:
        return [f"License of the students: {next(iter(by_license))}."]
    listed = ", ".join(
        f"{license} (trials {', '.join(numbers)})" for license, numbers in by_license.items()
    )
    return [f"Licenses of the students: {listed}."]


def _rank(score: Score | None) -> float:
    """The key to sort by, the best first; a trial without a score comes last."""
    return 1.0 if score is None else -score.value


def _format_score(score: Score | None) -> tuple[str, str]:
    if score is None:
        return "", ""
    return format_percent(score.value), format_interval(score.low, score.high)


def _format_top1(metrics: ModelMetrics | None) -> tuple[str, str]:
    if metrics is None:
        return "", ""
    return format_percent(metrics.top1), format_interval(metrics.top1_low, metrics.top1_high)


def _describe_winner(trials: Sequence[Trial], winner: int | None) -> str:
    best = next((trial for trial in trials if trial.number == winner), None)
    if best is None or best.results is None:
        return "No trial won: none is measured on validation."
    test = read_selection(best.results, "test")
    if test is None:
        return f"* Trial {winner} won on validation; the test set was not read."
    value, bounds = _format_score(test)
    return (
        f"* Trial {winner} won on validation. Its {test.phrase} is {value} (interval {bounds},"
        f" {test.num_images:,} images). Quote this number: the best of several validation"
        " results is too good by chance."
    )
