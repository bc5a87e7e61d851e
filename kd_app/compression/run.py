"""The ordered list of steps, what each lost, and the run's folder that they end in."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool

from kd_app.compression.step import Step
from kd_app.config import RequestError, RunError, Typed, unknown
from kd_app.config.targets import check_targets
from kd_app.deployment.measure import Predictions
from kd_app.metrics.intervals import wilson
from kd_app.metrics.verdict import Verdict
from kd_app.reporting.console import Console
from kd_app.reporting.page import write_report
from kd_app.reporting.results import Results, read
from kd_app.reporting.tables import summary, waterfall
from kd_app.stages import Stages
from kd_app.tracking import Tracker
from kd_app.training.evaluate import COMPRESSED, as_run, check_classes, members_of
from kd_app.training.parts import Config, make, parts
from kd_app.training.proof import SPLIT, Proof, described, evaluated
from kd_app.training.run_folder import RESULTS, claimed
from kd_app.training.settings import Group, Place
from kd_app.training.workshop import Member, Workshop

_ROLES = ("teacher", "student")
_AROUND = ("out", "stages", "remake", "overwrite", "allow", "test", "license")


class Compression(Typed, called="kd-compress"):
    """The top level of ``conf/compress.yaml``; whatever else is there is a block of settings that `steps` may name."""

    def __init__(
        self,
        *,
        run: Place,
        steps: Annotated[list[Place], Field(min_length=1)],
        max_loss: Annotated[float, Field(ge=0, le=1)] | None,
        out: Place | None,
        stages: Place | None,
        remake: list[Place],
        overwrite: StrictBool,
        allow: list[Place],
        test: Literal["auto", "always", "never"],
        license: Group,
        **blocks: Group,
    ) -> None:
        for name in (*steps, *remake):
            if name not in blocks:
                raise unknown("step", name, blocks)
        self.run = Path(run)
        self.steps = steps
        self.blocks = blocks
        self.max_loss = max_loss
        self.out = Path(out) if out else self.run / "compressed"
        self.test = test


@dataclass(frozen=True)
class _Reached:
    """A student, its answers on validation, and its line of the waterfall."""

    member: Member
    answers: Predictions
    line: dict[str, Any]


def compress(config: Config, *, console: Console | None = None, trial: int | None = None) -> Path:
    """Take the steps of ``config['steps']`` with the student of the finished run ``config['run']``; the folder of the compressed run.

    Raises `RequestError` for a wrong request, `RunError` where a step loses more than ``max_loss``: the folder holds the student before it then.
    """
    asked, console = Compression(**config), console or Console()
    check_targets(asked.blocks, config["allow"])
    steps: list[tuple[str, Step]] = [(name, make(asked.blocks[name], Step)) for name in asked.steps]
    before = read(asked.run / RESULTS)
    if before.status != "finished":
        raise RequestError(f"The run {str(asked.run)!r} is {before.status}, not finished. Say its kd-distill command again to finish it.")
    taken_up = {**as_run(asked.run, config, before), "license": config["license"], "controls": {}, "remake": []}
    made = parts(taken_up)
    made.licenses.check()
    told = {key: value for key, value in config.items() if key not in _AROUND and (key not in asked.blocks or key in asked.steps)}
    record = {**taken_up, COMPRESSED: told}
    out = asked.out if trial is None else asked.out / str(trial)
    with claimed(out, record, overwrite=config["overwrite"]):
        stages = Stages(Path(taken_up["stages"]), remake=config["remake"], say=console.say)
        tracker = Tracker({}, out=out, config=record, say=console.say, name=out.name, group=out.parent.name, tags=[])
        shop = Workshop(made, stages, console, tracker)
        proof = Proof(shop, out, Verdict(**taken_up["verdict"]))
        proof.found["config"] = record
        read_test = asked.test == "always" or (asked.test == "auto" and trial is None)
        _go(asked, steps, proof, before, read_test=read_test, report=trial is None)
    return out


def _go(asked: Compression, steps: list[tuple[str, Step]], proof: Proof, before: Results, *, read_test: bool, report: bool) -> None:
    shop = proof.shop
    shop.prepare_data()
    check_classes(shop, before)
    members = members_of(shop, asked.run, before.model_copy(update={"models": {r: m for r, m in before.models.items() if r in _ROLES}}), shop.console)
    if "teacher" in before.models and "teacher" not in members:
        raise RequestError(f"The teacher of {str(asked.run)!r} is not there any more. Say the run's kd-distill command again to make it.")
    teacher = members.get("teacher")
    reached, stopped = _taken(asked, steps, proof, members["student"], teacher)
    members["student"] = reached.member
    proof.measure(members, {split: split for split in ("validation", "test") if split != "test" or read_test})
    proof.ship(members)
    results = proof.write("failed" if stopped else "finished", reason=stopped)
    shop.console.say()
    if not stopped:
        if report:
            write_report([proof.out], proof.out)
        shop.console.show(summary(results))
    shop.console.show(waterfall(results.steps))
    shop.console.say(f"Everything is in {proof.out}")
    if stopped:
        raise RunError(stopped)


def _taken(asked: Compression, steps: list[tuple[str, Step]], proof: Proof, student: Member, teacher: Member | None) -> tuple[_Reached, str | None]:
    """All steps, or those before the first that lost too much; and why it stopped there."""
    shop = proof.shop
    shop.data.write_split(proof.out / SPLIT)
    kept = now = _measured("start", proof, student, None)
    lines = [now.line]
    for number, (name, step) in enumerate(steps):
        after = step.take(name, shop, now.member, teacher)
        now = _measured(name, proof, after, now, told=step.told(after))
        lines.append(now.line)
        proof.found["steps"] = lines
        if number + 1 < len(steps) and steps[number + 1][1].recovers:
            continue  # what it lost is judged when that was tried
        lost = _difference(proof.verdict, kept.answers, now.answers)["value"]
        if asked.max_loss is not None and lost > asked.max_loss:
            return kept, (
                f"The step {name} lost {100 * lost:.2f} points of {proof.verdict.metric} on validation beside {kept.line['name']}, more than "
                f"max_loss={asked.max_loss:g} ({100 * asked.max_loss:g} points). {proof.out / 'student'} is the student of the step before: "
                f"{kept.line['name']}. Ask for less (a larger share, more epochs), or for a larger max_loss."
            )
        kept = now
    return kept, None


def _measured(name: str, proof: Proof, member: Member, before: _Reached | None, *, told: dict[str, Any] | None = None) -> _Reached:
    """A student's figures on validation, beside those of the step before; said as soon as they are known."""
    shop = proof.shop
    answers = shop.predictions(member, "validation")
    right = int((answers.logits.argmax(axis=1) == answers.target).sum())
    low, high = wilson(right, len(answers.target), 0.95)
    about = described(member, shop, "")
    line = {
        "name": name,
        "top1": {"value": right / len(answers.target), "low": low, "high": high},
        "lost": _difference(proof.verdict, before.answers, answers) if before else None,
        **{key: about[key] for key in ("macs", "params", "size_bytes")},
        "told": told or {},
    }
    shop.console.say(f"{name}: {evaluated(answers)} on validation, {line['macs']:,} multiply-adds, {line['params']:,} parameters")
    return _Reached(member, answers, json.loads(json.dumps(line)))


def _difference(verdict: Verdict, before: Predictions, now: Predictions) -> dict[str, float]:
    """What `now` lost beside `before` on the same images, in 0..1, with the ends of its interval."""
    judged = verdict.judge({"teacher": before.logits, "student": now.logits}, now.target)
    return {"value": -judged.difference, "low": -judged.high, "high": -judged.low}
