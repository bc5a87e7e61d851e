"""The settings of a job that are no part's own, checked before anything is read: types,
ranges, and keys that nobody knows.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, StrictBool

from kd_app.config import RequestError, Typed, build_unknown_error
from kd_app.config.compose import explain_not_chosen, is_choice
from kd_app.config.paths import list_choices
from kd_app.models.license import Policy
from kd_app.reporting.results import Split

Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Place = Annotated[str, Field(min_length=1)]
Group = dict[str, Any]

_CONTROL = (
    "loss",
    "student",
    "match_wall_time",
    "label_entropy_temperature",
    "shuffle_teacher_images",
)
_MODEL = ("_target_", "name", "pretrained", "checkpoint", "kwargs", "image_size", "license")
_TAUGHT = ("loss", "optimizer", "scheduler", "max_epochs", "seed", "outputs")
_MADE_OF = ("classes", "chain", "members", "by", "decay")


class DistillSettings(Typed, called="kd-distill"):
    """The top level of ``conf/distill.yaml``."""

    def __init__(
        self,
        *,
        out: Place | None,
        stages: Place,
        remake: list[str],
        overwrite: StrictBool,
        seed: Seed,
        tags: list[str],
        allow: list[Place],
        trial_pruning: Literal["median"] | None,
        test: Literal["auto", "always", "never"],
        examples: Annotated[int, Field(ge=0, le=1000, strict=True)],
        verdict: Group,
        license: Group,
        data: Group,
        teacher: Group | None,
        student: Group,
        loss: Group,
        optimizer: Group,
        scheduler: Group,
        trainer: Group,
        robustness: Group,
        budget: Group | None,
        callbacks: Group,
        logger: Group,
        controls: Group,
    ) -> None:
        for group, chosen in (("loss", loss), ("callbacks", callbacks), ("logger", logger)):
            _check_chosen(group, chosen)
        for name, control in controls.items():
            if not re.fullmatch(r"\w+", name):
                raise RequestError(
                    f"controls has the name {name!r}. Expected letters, digits and underscores:"
                    " folders are called by it."
                )
            if name != "labels_only" and (name in Split.model_fields or hasattr(Split, name)):
                raise RequestError(
                    f"controls has the name {name!r}, by which results.json calls something else."
                    " Call that control otherwise."
                )
            _check_known(f"controls.{name}", control, _CONTROL)
            if control.get("student") is not None:
                _check_net(f"controls.{name}.student", control["student"])
        _check_known("student", student, _MODEL)
        if teacher is not None:
            _check_known("teacher", teacher, (*_MODEL, *_TAUGHT, *_MADE_OF))
        for name in remake:
            _check_stage(name, controls, len((teacher or {}).get("chain") or ()))


class Licensing(Typed, called="license"):
    """Which licenses are accepted whatever they forbid, and a policy to use instead of
    ours.
    """

    def __init__(self, *, accept: list[Place], policy: Path | None) -> None:
        self.accept = accept
        self.policy = Policy() if policy is None else Policy(policy)


class LicenseSetting(Typed, called="license"):
    """The license of weights or data that their user says, where they do not say it
    themselves.
    """

    def __init__(self, *, license: Place | None) -> None:
        self.license = license


class TeacherTraining(Typed, called="teacher"):
    """The teacher's own training; ``max_epochs=0`` leaves it as it is."""

    def __init__(self, *, max_epochs: NonNegativeInt, seed: Seed) -> None:
        self.max_epochs = max_epochs
        self.seed = seed


class TeacherOutputs(Typed, called="teacher"):
    """How a teacher is asked: live, at every step, or once for every view, its answers
    stored.
    """

    def __init__(self, *, outputs: Literal["live", "cached"]) -> None:
        self.outputs: Literal["live", "cached"] = outputs


class EnsembleSettings(Typed, called="teacher"):
    """Several teachers that answer as one. members: by name, each as a single teacher,
    and its `weight` (1 where it says none).
    """

    def __init__(
        self, *, members: dict[str, Group], by: Literal["mean", "confidence"], classes: None
    ) -> None:
        if len(members) < 2:
            raise RequestError(
                f"teacher.members holds {len(members)} teachers, expected 2 or more:"
                " teacher.members.a.checkpoint=runs/a teacher.members.b.checkpoint=runs/b. A"
                " single one is teacher=timm."
            )
        for name, member in members.items():
            _check_known(f"teacher.members.{name}", member, (*_MODEL, "classes", "weight"))
        self.members = {
            name: {key: value for key, value in member.items() if key != "weight"}
            for name, member in members.items()
        }
        self.weights = {
            name: MemberWeight(weight=member.get("weight", 1.0)).weight
            for name, member in members.items()
        }
        self.by = by


class EmaSettings(Typed, called="teacher"):
    """The student's own average as its teacher: ``average = decay * average + (1 -
    decay) * weights`` after every step.
    """

    def __init__(self, *, decay: Annotated[float, Field(gt=0, lt=1)]) -> None:
        self.decay = decay


class MemberWeight(Typed, called="teacher.members"):
    """What one of several teachers counts."""

    def __init__(self, *, weight: Annotated[float, Field(gt=0, allow_inf_nan=False)]) -> None:
        self.weight = weight


def check_link(node: Any) -> None:
    """Refuse what is no net of a chain."""
    _check_known("teacher.chain", node, _MODEL[1:-1])


class EvaluationSettings(Typed, called="kd-evaluate"):
    """The top level of ``conf/evaluate.yaml``."""

    def __init__(
        self,
        *,
        run: Place | None,
        cascade: Annotated[list[Place], Field(min_length=1)] | None,
        out: Place,
        overwrite: StrictBool,
        split: Literal["auto", "train", "validation", "test", "all"],
        limit: float | None,
        examples: Annotated[int, Field(ge=0, le=1000, strict=True)],
        allow: list[Place],
        stages: Place | None,
        data: Group | None,
        robustness: Group,
        routing: Group,
    ) -> None:
        if cascade is None and run is None:
            raise RequestError(
                "kd-evaluate needs to know what to measure: run=<folder of a run>, or"
                " 'cascade=[<cheap model>,<dear model>]'."
            )


def _check_chosen(group: str, chosen: Mapping[str, Any]) -> None:
    """Each choice of a select-many group is a part with a ``_target_``."""
    for name, node in chosen.items():
        if not isinstance(node, Mapping):
            raise RequestError(
                f"{group}.{name}={node!r} is no part. What is not wanted is not chosen:"
                f" '{group}=[...]' lists what is."
            )
        if "_target_" in node:
            continue
        if is_choice(group, name):
            raise RequestError(explain_not_chosen(group, name))
        raise build_unknown_error(f"choice of {group}=", name, list_choices(group))


def _check_net(path: str, node: Any) -> None:
    """A control's own net: named, or ``name: auto`` with the nets to choose from."""
    _check_known(path, node, (*_MODEL, "candidates"))
    candidates = node.get("candidates")
    if node.get("name") != "auto":
        return
    if not isinstance(candidates, Mapping) or not candidates:
        raise RequestError(
            f"{path}.candidates={candidates!r} does not fit: with name=auto it lists the nets to choose from,"
            " each as <key>: {name: ...}."
        )
    for key, each in candidates.items():
        _check_known(f"{path}.candidates.{key}", each, ("name", "kwargs"))


def _check_known(path: str, node: Any, known: Sequence[str]) -> None:
    if not isinstance(node, Mapping) or not set(node) & set(known):
        raise RequestError(
            f"{path}={node!r} does not fit: expected the settings {', '.join(known)}."
        )
    for key in node:
        if key not in known:
            raise build_unknown_error(
                "setting", f"{path}.{key}", [f"{path}.{each}" for each in known]
            )


def _check_stage(name: str, controls: Iterable[str], links: int) -> None:
    roles = ("teacher", "student", *controls)
    known = [
        "data",
        *roles,
        *(
            f"{what}-{role}-{split}"
            for what in ("answers", "corrupted")
            for role in roles
            for split in ("validation", "test")
        ),
    ]
    known += [f"link-{number}" for number in range(1, 1 + links)]
    known += [
        "answers-teacher-train",
        "answers-teacher-views",
        *(f"epochs-{control}" for control in controls),
    ]
    if name not in known:
        raise build_unknown_error("stage to remake", name, known)
