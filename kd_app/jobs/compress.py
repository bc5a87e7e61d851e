"""The ordered list of steps, what each lost, and the run's folder that they end in."""

import itertools
import json
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
from kd_app.config.targets import check_targets
from kd_app.metrics.record import Predictions
from kd_app.metrics.verdict import Judgment, VerdictRule
from kd_app.reporting.console import Console
from kd_app.reporting.html import write_report
from kd_app.reporting.results import Difference
from kd_app.reporting.results import Step as StepPart
from kd_app.reporting.tables import build_summary, build_waterfall
from kd_app.run.measurement import (
    describe_model,
    estimate_top1,
    format_top1,
    measure_models,
    name_data,
    start_results,
)
from kd_app.run.open_run import COMPRESSED, OpenRun, load_models, open_run, read_run
from kd_app.run.results_builder import ResultsBuilder, SplitName
from kd_app.run.run_output import SPLIT, list_uploads, write_models
from kd_app.run.schema import Group, Place
from kd_app.run.spec import Config
from kd_app.run.workspace import RunModel, Workspace, describe_reference
from kd_app.tracking import Backend, Tracker
from kd_app.tracking.base import STUDENT

_AROUND = ("out", "stages", "remake", "overwrite", "allow", "test", "logger", "tags", "license")


class Compression(Typed, called="kd-compress"):
    """The top level of ``conf/compress.yaml``; whatever else is there is a block of
    settings that `steps` may name.
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
    """A student, its answers on validation, and its line of the waterfall."""

    member: RunModel
    answers: Predictions
    line: StepPart


def compress(config: Config, *, console: Console | None = None, trial: int | None = None) -> Path:
    """Take the steps of ``config['steps']`` with the student of the finished run
    ``config['run']``; the folder of the compressed run.

    Raises `RequestError` for a wrong request, `RunError` where a step loses more than
    ``max_loss``: the folder holds the student before it then.
    """
    asked, console = Compression(**config), console or Console()
    check_targets(asked.blocks, config["allow"])
    steps: list[tuple[str, Step]] = [(name, make(asked.blocks[name], Step)) for name in asked.steps]
    _check_order(steps)
    saved = read_run(asked.run, config, "train")
    backends = {name: make(node, Backend) for name, node in config["logger"].items()}
    words = {
        key: value
        for key, value in config.items()
        if key not in _AROUND and (key not in asked.blocks or key in asked.steps)
    }
    record = {**saved.config, COMPRESSED: words}
    out = asked.out if trial is None else asked.out / str(trial)
    about = {
        "name": out.name,
        "group": out.parent.name,
        "tags": config["tags"],
        "shares": trial is not None,
    }
    tracker = Tracker(backends, out=out, config=record, say=console.print, **about)
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
        read_test = asked.test == "always" or (asked.test == "auto" and trial is None)
        _go(asked, steps, builder, run, read_test=read_test, report=trial is None)
    return out


def _check_order(steps: list[tuple[str, Step]]) -> None:
    for (name, step), (after, _) in itertools.pairwise(steps):
        if step.ends:
            order = [other for other, each in steps if not each.ends]
            raise RequestError(
                f"steps=[{','.join(other for other, _ in steps)}]: {after} can't go on from a"
                f" student that {name} made, which answers in int8. Put {name} last:"
                f" 'steps=[{','.join([*order, name])}]'."
            )


def _go(
    asked: Compression,
    steps: list[tuple[str, Step]],
    builder: ResultsBuilder,
    run: OpenRun,
    *,
    read_test: bool,
    report: bool,
) -> None:
    shop, out, rule = run.workspace, builder.out, builder.rule
    members = _load_models(asked, run)
    if members["student"].program is not None:
        raise RequestError(
            f"The student of {str(asked.run)!r} is quantized, and no step can go on from int8. Name"
            " the run that it was made from, with all steps:"
            f" 'steps=[{','.join(asked.steps)},quantize]'."
        )
    shop.data.write_split(out / SPLIT)
    shop.tracker.log_data(name_data(shop), shop.data.fingerprint, shop.data.sizes, out / SPLIT)
    student, teacher = members["student"], members.get("teacher")
    way, kept, stopped = _run_steps(asked, steps, shop, rule, student=student, teacher=teacher)
    if stopped:
        stopped += (
            f" {out / 'student'} is the student of the step before: {kept.line.name}. Ask for less"
            " (a larger share, more epochs), or for a larger max_loss."
        )
    elif asked.alternative:
        way.append(
            _run_alternative(asked.alternative, shop, rule, way, teacher, read_test=read_test)
        )
    builder.steps = _time_steps(shop, way)
    members["student"] = kept.member
    splits: dict[SplitName, str] = {"validation": "validation"}
    measure_models(builder, shop, members, splits | ({"test": "test"} if read_test else {}))
    builder.models["student"].size_bytes = write_models(out, shop, members)
    results = builder.write("failed" if stopped else "finished", stopped)
    if not stopped and report:
        write_report([out], out)
    shop.tracker.start(
        STUDENT, describe_reference(members["teacher"]) if "teacher" in members else None
    )
    shop.tracker.log_results(results, list_uploads(out))
    shop.console.print()
    if not stopped:
        shop.console.show(build_summary(results))
    shop.console.show(build_waterfall(results.steps))
    shop.console.print(f"Everything is in {out}")
    if stopped:
        raise RunError(stopped)


def _load_models(asked: Compression, run: OpenRun) -> dict[str, RunModel]:
    """The teacher, where the run has one, and as the student the model that is
    compressed.
    """
    roles = [role for role in run.results.models if role != "teacher"]
    if asked.role not in roles:
        raise build_unknown_error(f"model to compress in {str(asked.run)!r}", asked.role, roles)
    wanted = ("teacher", asked.role)
    members = load_models(run, wanted)
    for role in wanted:
        if role in run.results.models and role not in members:
            raise RequestError(
                f"The {role} of {str(asked.run)!r} is not there any more. Say the run's kd-distill"
                " command again to make it."
            )
    if "teacher" not in members and run.workspace.spec.recipe.needs_teacher:
        raise RequestError(
            f"The student of {str(asked.run)!r} learned from a teacher that is not measured (its"
            " own average, or one of other classes), and no step of kd-compress can ask it. Name a"
            " run whose teacher answers in the data's classes."
        )
    return {**members, "student": replace(members.pop(asked.role), role="student")}


def _run_steps(
    asked: Compression,
    steps: list[tuple[str, Step]],
    shop: Workspace,
    rule: VerdictRule,
    *,
    student: RunModel,
    teacher: RunModel | None,
) -> tuple[list[_StepResult], _StepResult, str | None]:
    """All steps, or those before the first that lost too much; the one that is kept;
    and why it stopped there.
    """
    kept = now = _measure_step("start", shop, rule, student, None)
    way = [now]
    for number, (name, step) in enumerate(steps):
        after = step.take(name, shop, now.member, teacher)
        now = _measure_step(name, shop, rule, after, now, told=step.describe(after))
        way.append(now)
        if number + 1 < len(steps) and steps[number + 1][1].recovers:
            continue  # what it lost is judged when that was tried
        lost = -rule.judge(now.answers, kept.answers).difference
        if asked.max_loss is not None and lost > asked.max_loss:
            stopped = (
                f"The step {name} lost {100 * lost:.2f} points of {rule.metric} on validation"
                f" beside {kept.line.name}, more than max_loss={asked.max_loss:g}"
                f" ({100 * asked.max_loss:g} points)."
            )
            return way, kept, stopped
        kept = now
    return way, kept, None


def _run_alternative(
    alternative: Alternative,
    shop: Workspace,
    rule: VerdictRule,
    way: list[_StepResult],
    teacher: RunModel | None,
    *,
    read_test: bool,
) -> _StepResult:
    """The alternative: a net of the cost that was reached. What int8 saves is in its
    latency, so that counts as if it were multiply-adds.
    """
    last = way[-1]
    macs = float(last.line.macs)
    if last.member.program is not None:
        found = measure_latencies(shop, {"float": way[-2].member, "int8": last.member})
        macs *= found["int8"] / found["float"] if found else 1.0
    member = alternative.train(shop, teacher, round(macs))
    told: dict[str, Any] = {"instead": True, "macs": round(macs)}
    if read_test:
        answers = shop.load_predictions(member, "test")
        told["test_top1"] = float((answers.logits.argmax(axis=1) == answers.target).mean())
    name = f"{ALTERNATIVE}: {member.spec.name}"
    return _measure_step(name, shop, rule, member, last, told=told)


def _time_steps(shop: Workspace, way: list[_StepResult]) -> list[StepPart]:
    """The waterfall, with latencies that were measured in turns."""
    named = {str(number): reached.member for number, reached in enumerate(way)}
    found = measure_latencies(shop, named)
    return [
        reached.line.model_copy(update={"latency_ms": found.get(number)})
        for number, reached in zip(named, way, strict=True)
    ]


def _measure_step(
    name: str,
    shop: Workspace,
    rule: VerdictRule,
    member: RunModel,
    before: _StepResult | None,
    *,
    told: dict[str, Any] | None = None,
) -> _StepResult:
    """A student's figures on validation, beside those of the step before; said as soon
    as they are known.
    """
    answers = shop.load_predictions(member, "validation")
    model = describe_model(shop, member, "")
    assert model.macs is not None
    assert model.params is not None
    judgment = rule.judge(answers, before.answers) if before else None
    line = StepPart(
        name=name,
        top1=estimate_top1(answers, 0.95),
        lost=judgment and _compute_loss(judgment),
        macs=model.macs,
        params=model.params,
        size_bytes=model.size_bytes,
        told=json.loads(json.dumps(told or {})),
    )
    shop.console.print(
        f"{name}: {format_top1(answers)} on validation, {line.macs:,} multiply-adds,"
        f" {line.params:,} parameters"
    )
    return _StepResult(member, answers, line)


def _compute_loss(judgment: Judgment) -> Difference:
    """Accuracy lost, in 0..1, with the ends of its interval."""
    return Difference(value=-judgment.difference, low=-judgment.high, high=-judgment.low)
