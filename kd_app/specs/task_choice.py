"""The task of a run, and the settings that only one task reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import Field, StrictBool

from kd_app.config import RequestError, Typed
from kd_app.models.spec import EmbeddingKind
from kd_app.reporting.results import Results
from kd_app.tasks.base import Task
from kd_app.tasks.build import TaskName, parse_task
from kd_app.tasks.classification import CLASSIFICATION

Config = dict[str, Any]
Purpose = Literal["measure", "export", "train"]
"""What a finished run is opened for."""
_NESTED: Final = {"teacher": "embedding", "student": "keep_projector"}
"""Group -> its setting that only a task without labels reads."""


_DEFAULTS: Final = {
    ("teacher", "embedding"): "pooled",
    ("student", "keep_projector"): "auto",
    ("neighbors", "k"): 10,
    ("neighbors", "margin"): 0.5,
}
"""Defaults of the settings that classification does not read, as in ``conf/``."""
_REASONS: Final = {
    "verdict.margin": "neighbors.margin is the one of neighbors",
    "verdict.metric": "the verdict is about the teacher's neighbors (neighbors.margin)",
    "teacher.classes": "an embedding has no classes",
    "teacher.chain": "an assistant would pass on its own neighbors, not the teacher's",
    "teacher.members": "an embedding has no classes, so a member needs no map of them",
    "teacher.decay": "the moving average of an untrained student has no neighbors to teach",
    "data.label_fraction": "no label is used in training",
    "data.refit": "the teacher's neighbors on validation choose the epoch and the output",
    "robustness": "it measures top-1 accuracy",
}


class NeighborSettings(Typed, called="neighbors"):
    """How embeddings are compared: the `k` nearest images, and the `margin`, the share
    of the teacher's neighbors that the student may lack.
    """

    def __init__(
        self,
        *,
        k: Annotated[int, Field(ge=1, le=100, strict=True)],
        margin: Annotated[float, Field(gt=0, lt=1)],
    ) -> None:
        self.k = k
        self.margin = margin


class EmbeddingSettings(Typed, called="task=embedding"):
    """The embedding of the teacher, and whether the student ships its projector."""

    def __init__(
        self, *, embedding: EmbeddingKind, keep_projector: StrictBool | Literal["auto"]
    ) -> None:
        self.embedding: EmbeddingKind = embedding
        self.keep_projector: bool | Literal["auto"] = keep_projector

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "EmbeddingSettings":
        """The settings of a run, with the defaults of what it does not set."""
        return cls(
            embedding=(config["teacher"] or {}).get("embedding") or "pooled",
            keep_projector=config["student"].get("keep_projector", "auto"),
        )


class TaskSetting(Typed, called="kd-distill"):
    """The name of the task."""

    def __init__(self, *, task: TaskName | Literal["auto"]) -> None:
        self.task = task


class TaskChoice(NamedTuple):
    """A task, and the configuration without the settings that it does not read.

    The name of a run and the hashes of its stages therefore depend on the task only if
    it is not classification.
    """

    task: Task
    config: Config


def resolve_task(config: Mapping[str, Any]) -> TaskChoice:
    """Choose the task of a configuration, as often as needed.

    Raises `RequestError` for a setting that the task does not read.
    """
    name = name_task(config)
    if name == CLASSIFICATION.name:
        _check_unused(config)
        return TaskChoice(CLASSIFICATION, strip_task(config))
    neighbors = NeighborSettings(**config["neighbors"])
    config = {**config, "task": name, "controls": _resolve_controls(config["controls"])}
    _check_without_labels(config)
    EmbeddingSettings.read(config)
    return TaskChoice(parse_task({"name": name, "k": neighbors.k}), config)


def name_task(config: Mapping[str, Any]) -> str:
    """Return the name of the task of a configuration; auto: that of the data group."""
    name: str = TaskSetting(task=config.get("task", "auto")).task
    presets = _to_group(_to_group(config.get("data")).get("presets"))
    return str(presets.get("task") or CLASSIFICATION.name) if name == "auto" else name


def fill_task(config: Mapping[str, Any]) -> Config:
    """Return the configuration with the top-level keys that `strip_task` removes."""
    return {"task": CLASSIFICATION.name, "neighbors": {}, **config}


def strip_task(config: Mapping[str, Any]) -> Config:
    """Return the configuration without the settings that only some tasks read."""
    stripped = {key: value for key, value in config.items() if key not in ("task", "neighbors")}
    for group, key in _NESTED.items():
        if isinstance(stripped.get(group), Mapping):
            stripped[group] = {k: v for k, v in stripped[group].items() if k != key}
    return stripped


def _check_unused(config: Mapping[str, Any]) -> None:
    """Raise `RequestError` for a setting that classification does not read."""
    settings = [
        (f"{group}.{key}", _to_group(config.get(group)).get(key, default), default)
        for (group, key), default in _DEFAULTS.items()
    ]
    members = _to_group(_to_group(config.get("teacher")).get("members"))
    settings += [
        (f"teacher.members.{name}.embedding", _to_group(each).get("embedding"), None)
        for name, each in members.items()
    ]
    for key, value, default in settings:
        if value != default:
            raise RequestError(
                f"{key}={value} has no effect on a run that learns classes. Expected:"
                f" task=embedding, or data=images. Remove {key}, or set task=embedding."
            )
    if _to_group(_to_group(config.get("data")).get("presets")).get("task") is not None:
        raise RequestError(
            "task=classification learns classes, and data=images has none. Expected: a folder for"
            " each class (data=folder), or a table of labels (data=csv). Choose such data, or set"
            " task=embedding."
        )


def _check_without_labels(config: Mapping[str, Any]) -> None:
    """Raise `RequestError` for a setting that only makes sense with classes, or for a
    teacher that has no embedding of its own.
    """
    teacher, data = _to_group(config.get("teacher")), _to_group(config.get("data"))
    members, verdict = _to_group(teacher.get("members")), _to_group(config.get("verdict"))
    conflicts = {
        "verdict.metric": verdict.get("metric", "top1") != "top1",
        "verdict.margin": verdict.get("margin", 0.01) != 0.01,
        "teacher.classes": bool(teacher.get("classes")),
        "teacher.chain": bool(teacher.get("chain")),
        "teacher.members": any(_to_group(each).get("classes") for each in members.values()),
        "teacher.decay": teacher.get("decay") is not None,
        "data.label_fraction": data.get("label_fraction") is not None,
        "data.refit": bool(data.get("refit")),
        "robustness": bool(_to_group(config.get("robustness")).get("corruptions")),
    }
    key = next((key for key, is_set in conflicts.items() if is_set), None)
    if key is None:
        return
    raise RequestError(
        f"{key} is set, and task=embedding has no use for it: {_REASONS[key]}. Remove {key}, or set"
        " task=classification for images with classes."
    )


def _to_group(node: Any) -> Mapping[str, Any]:
    return node if isinstance(node, Mapping) else {}


def _resolve_controls(controls: Any) -> Any:
    """No control that is trained for ``controls=auto``, as all of them read labels."""
    is_auto = isinstance(controls, Mapping) and controls.get("auto") is True
    return {} if is_auto else controls


def require_classifier(folder: Path, results: Results, *, why: str) -> None:
    """Raise `RequestError` for a run whose student is no classifier.

    why: what the command does with classes, as a clause.
    """
    if results.embedding is None:
        return
    raise RequestError(
        f"The student of {str(folder)!r} outputs an embedding (task=embedding), and {why}."
        " Expected: a run that learned classes. kd-evaluate run=, kd-export and kd-predict accept"
        " the run as it is."
    )
