"""The job of ``kd-compress``: applies an ordered list of steps to the student of a
finished run, measures what each step loses, and writes a new run.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool

from kd_app.compression.alternative import STAGE as ALTERNATIVE
from kd_app.compression.alternative import Alternative
from kd_app.compression.latency import measure_latencies
from kd_app.compression.step import Step
from kd_app.config import RequestError, RunError, Typed, build_unknown_error
from kd_app.config.make import make
from kd_app.config.redact import redact
from kd_app.digest import round_trip_json
from kd_app.measurement.builder import ResultsBuilder, SplitName
from kd_app.measurement.classification import (
    describe_model,
    measure_models,
    name_data,
    start_results,
)
from kd_app.metrics.record import Predictions
from kd_app.metrics.verdict import Judgment, VerdictRule
from kd_app.reporting.console import Console
from kd_app.reporting.html import write_report
from kd_app.reporting.metrics import Difference
from kd_app.reporting.results import CompressionStep as StepPart
from kd_app.reporting.tables import build_summary, build_waterfall
from kd_app.reporting.top1 import estimate_top1, format_top1
from kd_app.run.model import RunModel, describe_reference
from kd_app.run.open_run import COMPRESSED, OpenRun, load_models, open_run, read_run
from kd_app.run.output import list_uploads, write_models
from kd_app.run.workspace import Workspace
from kd_app.run_files import SPLIT
from kd_app.specs.schema import Group, Place
from kd_app.specs.spec import Config
from kd_app.tracking import Backend, Tracker
from kd_app.tracking.base import STUDENT

_NOT_RECORDED = (
    "out",
    "stages",
    "remake",
    "overwrite",
    "allow",
    "test",
    "logger",
    "tags",
    "license",
    "trainer",
)
"""Settings that do not change the compressed student."""


class Compression(Typed, called="kd-compress"):
    """The top level of ``conf/compress.yaml``. Any further key is the block of a step,
    which `steps` may name.
    """

    def __init__(
        self,
        *,
        run: Place,
        role: Place,
        steps: Annotated[list[Place], Field(min_length=1)],
        max_loss: Annotated[float, Field(ge=0, le=1)] | None,
        out: Place | None,
        stages: Place | None,
        remake: list[Place],
        overwrite: StrictBool,
        allow: list[Place],
        test: Literal["auto", "always", "never"],
        alternative: Place | None,
        candidates: Annotated[list[Group], Field(min_length=1)],
        logger: Group,
        tags: list[str],
        license: Group,
        trainer: Group,
        **blocks: Group,
    ) -> None:
        for name in (*steps, *remake):
            if name not in blocks:
                raise build_unknown_error("step", name, blocks)
        self.run = Path(run)
        self.role = role
        self.steps = steps
        self.blocks = blocks
        self.max_loss = max_loss
        self.out = Path(out) if out else self.run / "compressed"
        self.test = test
        self.alternative = Alternative(alternative, tuple(candidates)) if alternative else None


@dataclass(frozen=True)
class _StepResult:
    """A student after a step, its predictions on validation, and its row in the
    waterfall.
    """

    model: RunModel
    predictions: Predictions
    row: StepPart


@dataclass(frozen=True)
class _Steps:
    """Results of the steps, in order. kept: the student to ship. stop_reason: why later
    steps were not applied, or None.
    """

    results: list[_StepResult]
    kept: _StepResult
    stop_reason: str | None = None


def compress(config: Config, *, console: Console | None = None, trial: int | None = None) -> Path:
    """Apply ``config['steps']`` to the student of the finished run ``config['run']``;
    returns the folder of the compressed run.

    Raises `RequestError` for a wrong request, and `RunError` if a step loses more than
    ``max_loss``; the folder then holds the student before that step.
    """
    config = {**config, "tags": redact(config["tags"])}
    settings, console = Compression(**config), console or Console()
    steps: list[tuple[str, Step]] = [
        (name, make(settings.blocks[name], Step)) for name in settings.steps
    ]
    check_order(steps)
    saved = read_run(settings.run, config, "train")
    backends = {name: make(node, Backend) for name, node in config["logger"].items()}
    record = {**saved.config, COMPRESSED: select_recorded(config, settings)}
    out = settings.out if trial is None else settings.out / str(trial)
    tracker = Tracker(
        backends,
        out=out,
        name=out.name,
        group=out.parent.name,
        tags=config["tags"],
        config=record,
        skip_reused=trial is not None,
        say=console.print,
    )
    with (
        open_run(
            saved,
            out,
            record,
            overwrite=config["overwrite"],
            console=console,
            remake=config["remake"],
            tracker=tracker,
        ) as run,
        tracker.close_at_exit(),
    ):
        builder = start_results(run.workspace, out, run.verdict)
        builder.config = record
        if run.results.data is not None:
            builder.teacher_labels = run.results.data.teacher_labels
        read_test = settings.test == "always" or (settings.test == "auto" and trial is None)
        _compress(settings, steps, builder, run, read_test=read_test, report=trial is None)
    return out


def select_recorded(config: Config, settings: Compression) -> Config:
    """The settings that determine the compressed student, without those of steps that
    are not applied.
    """
    unused = settings.blocks.keys() - set(settings.steps)
    return {
        key: value
        for key, value in config.items()
        if key not in _NOT_RECORDED and key not in unused
    }


def check_order(steps: Sequence[tuple[str, Step]]) -> None:
    """Raises `RequestError` if a step follows one whose student can't be changed."""
    for (name, step), (next_name, _) in itertools.pairwise(steps):
        if step.is_final:
            names = ",".join(each for each, _ in steps)
            order = ",".join([*(each for each, other in steps if not other.is_final), name])
            raise RequestError(
                f"steps=[{names}]: {next_name} can't change the student that {name} returns, which"
                f" computes in int8. Put {name} last: 'steps=[{order}]'."
            )


def _compress(
    settings: Compression,
    steps: list[tuple[str, Step]],
    builder: ResultsBuilder,
    run: OpenRun,
    *,
    read_test: bool,
    report: bool,
) -> None:
    workspace, out, rule = run.workspace, builder.out, builder.rule
    tracker, console, data = workspace.tracker, workspace.console, workspace.data
    models = _load_models(settings, run)
    if models["student"].program is not None:
        raise RequestError(
            f"The student of {str(settings.run)!r} is quantized, and no step can go on from int8."
            " Name the run before quantization, with all steps:"
            f" 'steps=[{','.join(settings.steps)},quantize]'."
        )
    data.write_split(out / SPLIT)
    tracker.log_data(name_data(workspace), data.fingerprint, data.sizes, out / SPLIT)
    teacher = models.get("teacher")
    done = _run_steps(settings, steps, workspace, rule, student=models["student"], teacher=teacher)
    results, reason = done.results, done.stop_reason
    if reason:
        reason += (
            f" {out / 'student'} holds the student of the step before: {done.kept.row.name}."
            " Compress less (a larger share, more epochs), or set a larger max_loss."
        )
    elif settings.alternative:
        alternative = _run_alternative(
            settings.alternative, workspace, rule, results, teacher, read_test=read_test
        )
        results = [*results, alternative]
    builder.steps = _time_steps(workspace, results)
    models["student"] = done.kept.model
    splits: dict[SplitName, str] = {"validation": "validation"}
    if read_test:
        splits["test"] = "test"
    measure_models(builder, workspace, models, splits)
    builder.models["student"].size_bytes = write_models(out, workspace, models)
    run_results = builder.write("failed" if reason else "finished", reason)
    if not reason and report:
        write_report([out], out)
    tracker.start(STUDENT, describe_reference(teacher) if teacher else None)
    tracker.log_results(run_results, list_uploads(out))
    console.print()
    if not reason:
        console.show(build_summary(run_results))
    console.show(build_waterfall(run_results.steps))
    console.print(f"Everything is in {out}")
    if reason:
        raise RunError(reason)


def _load_models(settings: Compression, run: OpenRun) -> dict[str, RunModel]:
    """The teacher, if the run has one, and the model to compress as 'student'."""
    roles = [role for role in run.results.models if role != "teacher"]
    if settings.role not in roles:
        raise build_unknown_error(
            f"model to compress in {str(settings.run)!r}", settings.role, roles
        )
    needed = ("teacher", settings.role)
    models = load_models(run, needed)
    for role in needed:
        if role in run.results.models and role not in models:
            raise RequestError(
                f"The {role} of {str(settings.run)!r} is missing. Re-run the run's kd-distill"
                " command to rebuild it."
            )
    if "teacher" not in models and run.workspace.spec.recipe.needs_teacher:
        raise RequestError(
            f"The student of {str(settings.run)!r} learned from a teacher that kd-compress can't"
            " use (an EMA teacher, or one with other classes). Name a run whose teacher has the"
            " data's classes."
        )
    return {**models, "student": replace(models.pop(settings.role), role="student")}


def _run_steps(
    settings: Compression,
    steps: list[tuple[str, Step]],
    workspace: Workspace,
    rule: VerdictRule,
    *,
    student: RunModel,
    teacher: RunModel | None,
) -> _Steps:
    """Apply the steps in order, until one loses more than ``max_loss``.

    A step before one that recovers (finetune) is judged together with that one.
    """
    kept = current = _measure_step("start", workspace, rule, student, None)
    results = [current]
    for number, (name, step) in enumerate(steps):
        model = step.take(name, workspace, current.model, teacher)
        details = step.describe(model)
        current = _measure_step(name, workspace, rule, model, current, details=details)
        results.append(current)
        if number + 1 < len(steps) and steps[number + 1][1].recovers:
            continue
        loss = -rule.judge(current.predictions, kept.predictions).difference
        if settings.max_loss is not None and loss > settings.max_loss:
            reason = (
                f"The step {name} lost {100 * loss:.2f} points of {rule.metric} on validation,"
                f" compared with {kept.row.name}. That is more than max_loss={settings.max_loss:g}"
                f" ({100 * settings.max_loss:g} points)."
            )
            return _Steps(results, kept, reason)
        kept = current
    return _Steps(results, kept)


def _run_alternative(
    alternative: Alternative,
    workspace: Workspace,
    rule: VerdictRule,
    results: list[_StepResult],
    teacher: RunModel | None,
    *,
    read_test: bool,
) -> _StepResult:
    """Train and measure a smaller model of the cost of the compressed student."""
    last = results[-1]
    macs = float(last.row.macs)
    if last.model.program is not None:
        # int8 does not change the multiply-adds, so its speedup reduces them here.
        latency = measure_latencies(workspace, {"float": results[-2].model, "int8": last.model})
        macs *= latency["int8"] / latency["float"] if latency else 1.0
    model = alternative.train(workspace, teacher, round(macs))
    details: dict[str, Any] = {"instead": True, "macs": round(macs)}
    if read_test:
        test = workspace.load_predictions(model, "test")
        details["test_top1"] = float((test.logits.argmax(axis=1) == test.target).mean())
    name = f"{ALTERNATIVE}: {model.spec.name}"
    return _measure_step(name, workspace, rule, model, last, details=details)


def _time_steps(workspace: Workspace, results: list[_StepResult]) -> list[StepPart]:
    """The rows of the waterfall, with latencies that were measured in turns."""
    models = {str(number): result.model for number, result in enumerate(results)}
    latencies = measure_latencies(workspace, models)
    return [
        result.row.model_copy(update={"latency_ms": latencies.get(number)})
        for number, result in zip(models, results, strict=True)
    ]


def _measure_step(
    name: str,
    workspace: Workspace,
    rule: VerdictRule,
    model: RunModel,
    before: _StepResult | None,
    *,
    details: dict[str, Any] | None = None,
) -> _StepResult:
    """Measure a student on validation, and compare it with the step before."""
    predictions = workspace.load_predictions(model, "validation")
    description = describe_model(workspace, model, "")
    assert description.macs is not None
    assert description.params is not None
    judgment = rule.judge(predictions, before.predictions) if before else None
    row = StepPart(
        name=name,
        top1=estimate_top1(predictions, 0.95),
        lost=judgment and compute_loss(judgment),
        macs=description.macs,
        params=description.params,
        size_bytes=description.size_bytes,
        details=round_trip_json(details or {}),
    )
    workspace.console.print(
        f"{name}: {format_top1(predictions)} on validation, {row.macs:,} multiply-adds,"
        f" {row.params:,} parameters"
    )
    return _StepResult(model, predictions, row)


def compute_loss(judgment: Judgment) -> Difference:
    """Accuracy lost (0..1) with the ends of its interval: minus the difference."""
    return Difference(value=-judgment.difference, low=-judgment.high, high=-judgment.low)
