"""What a run found, as a table for people: readable at 80 columns, in a log, without
color.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kd_app.metrics.model_metrics import MODEL_METRICS
from kd_app.reporting.distillation_gain import describe_gains
from kd_app.reporting.results import Model, ModelMetrics, Results, Split, Step
from kd_app.reporting.sentences import (
    build_pair_rows,
    count,
    format_difference,
    format_interval,
    format_percent,
    format_points,
    write,
    write_sentences,
)


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep: its number, what it overrides, and its results, None where
    it has none that can be read.
    """

    number: int
    overrides: tuple[str, ...]
    results: Results | None


def build_summary(results: Results) -> RenderableType:
    """The table that ends the main job: teacher, labels only, distilled; then what the
    student kept, the verdict, and what the figures rest on.
    """
    split = results.test or results.validation
    if split is None:
        reason = f" {results.reason}" if results.reason else ""
        return Text(f"Nothing is measured yet: the run's status is '{results.status}'.{reason}")
    pair = build_pair_rows(split)
    parts: list[RenderableType] = [_build_models_table(results, split)]
    if pair:
        parts += [_build_pair_table(pair, split.confidence)]
    if set(split.gains) - {"labels_only"}:
        parts += [_build_controls_table(results, split)]
    return Group(
        *parts,
        *(
            Text(sentence)
            for sentence in [*describe_gains(results), *write_sentences(results, split)]
        ),
    )


def _build_models_table(results: Results, split: Split) -> Table:
    figures = {"teacher": split.teacher, "labels_only": split.labels_only, "student": split.student}
    present = {role: each for role, each in figures.items() if each is not None}
    heads = {
        "teacher": "teacher",
        "labels_only": "labels only",
        "student": "distilled" if split.teacher or split.labels_only else "student",
    }
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for role in present:
        table.add_column(heads[role], justify="right", overflow="fold")
    models = {role: results.models.get(role) for role in present}
    table.add_row("model", *(model.name if model else "" for model in models.values()))
    for spec in (spec for spec in MODEL_METRICS if "console" in spec.shown):
        cells = [write(each.get(spec.name), spec.format) for each in present.values()]
        table.add_row(spec.label, *(value for value, _ in cells))
        table.add_row(f"  {100 * split.confidence:g} % interval", *(bounds for _, bounds in cells))
    table.add_row(
        "parameters", *(count(model.params if model else None) for model in models.values())
    )
    table.add_row(
        "multiply-adds", *(count(model.macs if model else None) for model in models.values())
    )
    table.add_row("size on disk", *(_format_size(model) for model in models.values()))
    table.add_row("license", *(model.license if model else "unknown" for model in models.values()))
    table.add_row("images per second", *(_read_speed(results, role) for role in present))
    return table


def build_waterfall(steps: Sequence[Step]) -> Table:
    """What each step of a compression cost in accuracy on validation (points), and what
    it saved; and the alternative beside what came out.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("step")
    for head in (
        "top-1",
        "95 % interval",
        "lost",
        "multiply-adds",
        "parameters",
        "size",
        "latency",
    ):
        table.add_column(head, justify="right")
    for step in steps:
        lost = (
            "" if step.lost is None or step.lost.value is None else format_points(step.lost.value)
        )
        latency = "unknown" if step.latency_ms is None else f"{step.latency_ms:.3g} ms"
        sizes = (count(step.macs), count(step.params), f"{count(step.size_bytes)}B", latency)
        table.add_row(
            step.name,
            format_percent(step.top1.value),
            format_interval(step.top1.low, step.top1.high),
            lost,
            *sizes,
        )
    return table


def _build_controls_table(results: Results, split: Split) -> Table:
    """Each control, and what distilling gained over it."""
    bounds = f"{100 * split.confidence:g} % interval"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("control", overflow="fold")
    for head in ("top-1", bounds, "gain", bounds):
        table.add_column(head, justify="right")
    student = results.models.get("student")
    for control, gain in split.gains.items():
        model, figures = results.models.get(control), split.by_model[control]
        net = f" ({model.name})" if model and student and model.name != student.name else ""
        own = (format_percent(figures.top1), format_interval(figures.top1_low, figures.top1_high))
        table.add_row(
            f"{control.replace('_', ' ')}{net}",
            *own,
            *format_difference(gain.value, gain.low, gain.high),
        )
    return table


def _build_pair_table(rows: Sequence[tuple[str, str, str, str]], confidence: float) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("distilled")
    table.add_column("", justify="right")
    table.add_column(f"{100 * confidence:g} % interval", justify="right")
    table.add_column("what it is")
    for row in rows:
        table.add_row(*row)
    return table


def _format_size(model: Model | None) -> str:
    return f"{count(model.size_bytes)}B" if model else "unknown"


def _read_speed(results: Results, role: str) -> str:
    """The control is the student's net with other weights: it is not measured twice."""
    if role == "labels_only":
        return "as distilled"
    measured = results.speed.teacher if role == "teacher" else results.speed.student
    return (
        f"{measured.images_per_second:,.0f}"
        if measured and measured.images_per_second is not None
        else "unknown"
    )


def sweep(trials: Sequence[Trial], *, winner: int | None) -> RenderableType:
    """A sweep's trials, best by validation first; the winner is marked by a star and,
    where it was tested, its test figure is given.
    """
    ordered = sorted(trials, key=lambda trial: (-_read_validation_top1(trial), trial.number))
    confidence = next(
        (split.confidence for trial in ordered if (split := _select_validation(trial))), 0.95
    )
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title="Validation top-1 of each trial, best first",
        title_justify="left",
        title_style="",
    )
    table.add_column("trial", justify="right")
    table.add_column("overrides", overflow="fold")
    table.add_column("status")
    table.add_column("top-1", justify="right")
    table.add_column(f"{100 * confidence:g} % interval", justify="right")
    for trial in ordered:
        number = f"* {trial.number}" if trial.number == winner else str(trial.number)
        status = trial.results.status if trial.results else "unreadable"
        table.add_row(
            number,
            Text("\n".join(trial.overrides)),
            status,
            *_format_top1(_select_student(_select_validation(trial))),
        )
    return Group(
        table, Text(_describe_winner(trials, winner)), *map(Text, _describe_licenses(ordered))
    )


def _describe_licenses(trials: Sequence[Trial]) -> list[str]:
    """Under what the students are that the trials made."""
    by_license: dict[str, list[str]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.results and trial.results.license:
            by_license.setdefault(trial.results.license.ships, []).append(str(trial.number))
    several = len(by_license) > 1
    said = ", ".join(
        f"{name} (trials {', '.join(numbers)})" if several else name
        for name, numbers in by_license.items()
    )
    return [f"License of what ships: {said}."] if said else []


def _select_validation(trial: Trial) -> Split | None:
    return trial.results.validation if trial.results else None


def _select_student(split: Split | None) -> ModelMetrics | None:
    return split.student if split else None


def _read_validation_top1(trial: Trial) -> float:
    figures = _select_student(_select_validation(trial))
    return -1.0 if figures is None or figures.top1 is None else figures.top1


def _format_top1(figures: ModelMetrics | None) -> tuple[str, str]:
    return (
        (format_percent(figures.top1), format_interval(figures.top1_low, figures.top1_high))
        if figures
        else ("", "")
    )


def _describe_winner(trials: Sequence[Trial], winner: int | None) -> str:
    chosen = next((trial for trial in trials if trial.number == winner), None)
    if chosen is None or chosen.results is None:
        return "No trial won: none has a validation accuracy."
    test = chosen.results.test
    if test is None:
        return f"* Trial {winner} won on validation; the test set was not read."
    figure, bounds = _format_top1(test.student)
    return (
        f"* Trial {winner} won on validation. Its test top-1 is {figure} (interval {bounds},"
        f" {test.num_images:,} images): the figure to quote, since the best of several validation"
        " figures is too good by chance."
    )
