"""Schemas of the settings that do not belong to a single component: types, ranges and
unknown keys, validated before anything is read.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, StrictBool

from kd_app.config import RequestError, Typed, build_unknown_error
from kd_app.config.compose import explain_not_chosen, is_choice
from kd_app.config.paths import list_choices
from kd_app.config.typed import Epochs
from kd_app.models.license import Policy
from kd_app.reporting.metrics import Split
from kd_app.schedules import LearningRate
from kd_app.specs.controls import ControlSettings
from kd_app.tasks.build import TaskName
from kd_app.teacher_outputs.choice import CacheSetting

Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Place = Annotated[str, Field(min_length=1)]
Group = dict[str, Any]
KnownImagesRule = Literal["leave_out", "leave_out_similar", "measure"]
"""What kd-evaluate does with images that trained the run's models."""

_CONTROL_KEYS = tuple(signature(ControlSettings).parameters)
_MODEL_KEYS = ("_target_", "name", "pretrained", "checkpoint", "kwargs", "image_size", "license")
_OUTPUT_KEYS = ("outputs", "cache", "cache_gb")
_TRAINING_KEYS = ("loss", "optimizer", "scheduler", "max_epochs", "seed", *_OUTPUT_KEYS)
_MEMBER_KEYS = (*_MODEL_KEYS, "embedding", "classes", "weight")
_COMPOSITE_KEYS = ("embedding", "classes", "chain", "members", "by", "decay")


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
        checks: Literal["refuse", "warn", "off"] | StrictBool,
        test: Literal["auto", "always", "never"],
        examples: Annotated[int, Field(ge=0, le=1000, strict=True)],
        task: TaskName | Literal["auto"],
        neighbors: Group,
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
        label_trials: Group | None = None,
    ) -> None:
        if label_trials is not None:
            LabelTrials(**label_trials)
        for group, chosen in (("loss", loss), ("callbacks", callbacks), ("logger", logger)):
            _check_chosen(group, chosen)
        for name, control in controls.items():
            if not re.fullmatch(r"\w+", name):
                raise RequestError(
                    f"controls has the name {name!r}. Expected: letters, digits and underscores,"
                    " because the name is part of folder names."
                )
            if name != "labels_only" and (name in Split.model_fields or hasattr(Split, name)):
                raise RequestError(
                    f"controls has the name {name!r}, which is another key of results.json. Rename"
                    " that control."
                )
            _check_known(f"controls.{name}", control, _CONTROL_KEYS)
            _check_terms(f"controls.{name}.loss", control.get("loss"))
            if control.get("student") is not None:
                _check_control_model(f"controls.{name}.student", control["student"])
        _check_known("student", student, (*_MODEL_KEYS, "freeze", "keep_projector"))
        if teacher is not None:
            _check_known("teacher", teacher, (*_MODEL_KEYS, *_TRAINING_KEYS, *_COMPOSITE_KEYS))
            if "loss" in teacher:
                _check_terms("teacher.loss", teacher["loss"])
        _check_data(data)
        num_assistants = len(Chain(chain=(teacher or {}).get("chain") or []).chain)
        labelers = [
            "labels_only"
            for control in controls.values()
            if control.get("pseudo_label_confidence") is not None
        ]
        for name in remake:
            _check_stage(name, [*controls, *labelers], num_assistants)


class LabelTrials(Typed, called="label_trials"):
    """The shares of the labels to train on, each for `max_epochs` passes over as many
    images as all labels have; lr: the learning rate, 'auto' or a number.
    """

    def __init__(
        self,
        *,
        fractions: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)],
        max_epochs: Epochs,
        lr: LearningRate | Literal["auto"],
    ) -> None:
        self.fractions = fractions
        self.max_epochs = max_epochs
        self.lr = lr


class Chain(Typed, called="teacher"):
    """The models between teacher and student, each a name or settings."""

    def __init__(self, *, chain: list[Place | Group]) -> None:
        self.chain = chain


class TeacherFiles(Typed, called="teacher"):
    """The files of a teacher that is not trained here."""

    def __init__(self, *, checkpoint: Path | None, classes: Path | None) -> None:
        self.checkpoint = checkpoint
        self.classes = classes


class Licensing(Typed, called="license"):
    """accept: licenses that are accepted regardless of their terms. policy: a file that
    replaces the default policy.
    """

    def __init__(self, *, accept: list[Place], policy: Path | None) -> None:
        self.accept = accept
        self.policy = Policy() if policy is None else Policy(policy)


class LicenseSetting(Typed, called="license"):
    """The license of weights or data without a license in their metadata."""

    def __init__(self, *, license: Place | None) -> None:
        self.license = license


class TeacherTraining(Typed, called="teacher"):
    """The training of the teacher; ``max_epochs=0``: use the teacher as it is."""

    def __init__(self, *, max_epochs: Annotated[int, Field(ge=0, le=10**6)], seed: Seed) -> None:
        self.max_epochs = max_epochs
        self.seed = seed


class FreezeSetting(Typed, called="student"):
    """The layers of the student that are not trained; a single name is a list of
    one.
    """

    def __init__(self, *, freeze: list[Place] | Place | None) -> None:
        self.freeze = [freeze] if isinstance(freeze, str) else list(freeze or ())


class RefitSetting(Typed, called="data"):
    """refit: train student and controls again on train and validation."""

    def __init__(self, *, refit: StrictBool) -> None:
        self.refit = refit

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> bool:
        """The setting of a data group; false in a run that was saved without it."""
        return cls(refit=data.get("refit", False)).refit


class TeacherOutputs(Typed, called="teacher"):
    """How the teacher's outputs are computed: live at every step, or cached once for
    every view in a format. cache_gb: the most GB (1e9 bytes) that the views take.
    """

    def __init__(
        self,
        *,
        outputs: Literal["live", "cached"],
        cache: CacheSetting,
        cache_gb: PositiveFloat | None,
    ) -> None:
        if outputs == "live" and (cache != "auto" or cache_gb is not None):
            name = f"cache={cache}" if cache != "auto" else f"cache_gb={cache_gb:g}"
            raise RequestError(
                f"teacher.{name} is about cached outputs, but teacher.outputs=live runs the teacher"
                f" at every step. Set teacher.outputs=cached, or remove teacher.{name}."
            )
        self.is_cached = outputs == "cached"
        self.cache: CacheSetting = cache
        self.cache_gb = cache_gb

    @classmethod
    def read(cls, teacher: Mapping[str, Any] | None) -> "TeacherOutputs":
        """The settings of a teacher group; live for one without them."""
        defaults = dict(zip(_OUTPUT_KEYS, ("live", "auto", None), strict=True))
        node = teacher or {}
        return cls(**{key: node.get(key, default) for key, default in defaults.items()})


class EnsembleSettings(Typed, called="teacher"):
    """An ensemble of teachers.

    members: by name, each with the keys of a single teacher and a `weight` (default 1).
    """

    def __init__(
        self,
        *,
        members: dict[str, Group],
        by: Literal["auto", "mean", "confidence", "concatenate"],
        classes: None,
    ) -> None:
        if len(members) < 2:
            raise RequestError(
                f"teacher.members holds {len(members)} teachers, expected 2 or more:"
                " teacher.members.a.checkpoint=runs/a teacher.members.b.checkpoint=runs/b. For a"
                " single teacher use teacher=timm."
            )
        for name, member in members.items():
            _check_known(f"teacher.members.{name}", member, _MEMBER_KEYS)
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
    """The moving average of the student as its teacher: ``average = decay * average +
    (1 - decay) * weights`` after every step.
    """

    def __init__(self, *, decay: Annotated[float, Field(gt=0, lt=1)]) -> None:
        self.decay = decay


class MemberWeight(Typed, called="teacher.members"):
    """The weight of one member of an ensemble."""

    def __init__(self, *, weight: Annotated[float, Field(gt=0, allow_inf_nan=False)]) -> None:
        self.weight = weight


def check_assistant(node: Any) -> None:
    """Raise `RequestError` if `node` does not describe a model of ``teacher.chain``."""
    _check_known("teacher.chain", node, _MODEL_KEYS[1:-1])


class EvaluationSettings(Typed, called="kd-evaluate"):
    """The top level of ``conf/evaluate.yaml``."""

    def __init__(
        self,
        *,
        run: Place | None,
        model: Place | None,
        architecture: Place | None,
        cascade: Annotated[list[Place], Field(min_length=1)] | None,
        out: Place,
        overwrite: StrictBool,
        root: Place | None,
        split: Literal["auto", "train", "validation", "test", "all"],
        known_images: KnownImagesRule,
        limit: float | None,
        examples: Annotated[int, Field(ge=0, le=1000, strict=True)],
        allow: list[Place],
        stages: Place | None,
        data: Group | None,
        robustness: Group,
        routing: Group,
        trainer: Group,
    ) -> None:
        if cascade is None and run is None and model is None:
            raise RequestError(
                "kd-evaluate needs to know what to measure: run=<run folder>, model=<model>, or"
                " 'cascade=[<cheap model>,<expensive model>]'."
            )
        if data is not None:
            _check_data(data)
        if model is not None and (run is not None or cascade is not None):
            raise RequestError(
                f"model={model} is measured alone, and run= or cascade= names another thing to"
                " measure. Set one of them."
            )
        if data is not None and root is not None:
            raise RequestError(
                f"root={root} is the new location of the run's own images, but data= names other"
                " images. Use data.root for the location of other images."
            )


def _check_chosen(group: str, chosen: Mapping[str, Any]) -> None:
    """Every choice of a select-many group is a component with a ``_target_``."""
    for name, node in chosen.items():
        if not isinstance(node, Mapping):
            raise RequestError(
                f"{group}.{name}={node!r} is not a component. To remove it, leave it out of the"
                f" list '{group}=[...]'."
            )
        if "_target_" in node:
            continue
        if is_choice(group, name):
            raise RequestError(explain_not_chosen(group, name))
        raise build_unknown_error(f"choice of {group}=", name, list_choices(group))


def _check_data(data: Mapping[str, Any]) -> None:
    if "_target_" not in data:
        raise RequestError(
            f"data={dict(data)!r} has no _target_. Expected a choice of data=:"
            f" {', '.join(list_choices('data'))}; or the settings of your own data module."
        )


def _check_terms(path: str, terms: Any) -> None:
    """Every term of a loss is a component with a ``_target_``."""
    if not isinstance(terms, Mapping):
        raise RequestError(f"{path}={terms!r} does not fit. Expected loss terms by name.")
    for name, node in terms.items():
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise RequestError(
                f"{path}.{name}={node!r} is not a loss term. Expected settings with a _target_; to"
                " remove a term, choose others."
            )


def _check_control_model(path: str, node: Any) -> None:
    """A model of a control: a name, or ``name: auto`` with candidates."""
    _check_known(path, node, (*_MODEL_KEYS, "candidates"))
    candidates = node.get("candidates")
    if node.get("name") != "auto":
        return
    if not isinstance(candidates, Mapping) or not candidates:
        raise RequestError(
            f"{path}.candidates={candidates!r} does not fit. Expected with name=auto: the models to"
            " choose from, each as <key>: {name: ...}."
        )
    for key, each in candidates.items():
        _check_known(f"{path}.candidates.{key}", each, ("name", "kwargs"))


def _check_known(path: str, node: Any, known: Sequence[str]) -> None:
    if not isinstance(node, Mapping) or not set(node) & set(known):
        raise RequestError(
            f"{path}={node!r} does not fit. Expected the settings {', '.join(known)}."
        )
    for key in node:
        if key not in known:
            raise build_unknown_error(
                "setting", f"{path}.{key}", [f"{path}.{each}" for each in known]
            )


def _check_stage(name: str, controls: Iterable[str], num_assistants: int) -> None:
    """Raise `RequestError` if the run has no stage `name`."""
    roles = ("teacher", "student", *controls)
    known = ["data", *roles, "answers-teacher-train", "answers-teacher-views"]
    known += [f"answers-labels_only-{split}" for split in ("train", "unlabeled")]
    for outputs in ("answers", "corrupted"):
        for role in roles:
            known += [f"{outputs}-{role}-{split}" for split in ("validation", "test")]
    known += [f"link-{number}" for number in range(1, 1 + num_assistants)]
    known += [f"{part}-{control}" for part in ("epochs", "labels") for control in controls]
    known += [f"{role}-refit" for role in ("student", *controls)]
    if name not in known:
        raise build_unknown_error("stage to remake", name, known)
