"""From nodes of the configuration to model specs: a teacher or student, an ensemble of
teachers, a teacher of other classes, the assistants of a chain.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from kd_app.config import RequestError
from kd_app.config.targets import FACTORY, resolve_target
from kd_app.deployment.artifact import open_foreign
from kd_app.deployment.manifest import read_entry
from kd_app.models.class_map import ClassMap
from kd_app.models.composite import ArtifactTeacher, ClassMappedTeacher, EmaTeacher, TeacherEnsemble
from kd_app.models.embedding_ensemble import EmbeddingEnsemble
from kd_app.models.spec import CompositeTeacher, ModelSpec
from kd_app.models.weights_source import WeightsSource
from kd_app.specs.schema import EnsembleSettings, TeacherFiles, check_assistant
from kd_app.tasks.base import Output

Config = dict[str, Any]


@dataclass(frozen=True)
class AssistantSpec:
    """A model between teacher and student, distilled from the previous model of the
    chain; and the seed of its training.
    """

    spec: ModelSpec
    seed: int


def check_own_name(node: Config, choice: str) -> None:
    """Raise `RequestError` if the name of a teacher that is not one model was set."""
    name = node.get("name", choice)
    if name != choice:
        raise RequestError(
            f"teacher.name={name} has no effect with teacher={choice}. Remove one of them."
        )


def build_composite(node: Config, output: Output = "logits") -> CompositeTeacher | None:
    """A teacher that is an ensemble, has other classes, or is an exported file; None
    for a single model of the data's classes. output: what the students learn.
    """
    if node.get("members") is None:
        return _build_single(node)
    check_own_name(node, "several")
    settings: Config = {key: node.get(key) for key in ("members", "by", "classes")}
    ensemble = EnsembleSettings(**settings)
    teachers = {
        name: _build_single(each) or build_model_spec("teacher", each, None)
        for name, each in ensemble.members.items()
    }
    return _combine(teachers, ensemble, output)


def _combine(
    members: Mapping[str, ModelSpec], settings: EnsembleSettings, output: Output
) -> TeacherEnsemble:
    """Several teachers as one. Raises `RequestError` for a combination of other
    outputs.
    """
    known: Mapping[str, tuple[str, ...]] = {
        "logits": ("mean", "confidence"),
        "embedding": ("concatenate", "mean"),
    }
    by: Any = known[output][0] if settings.by == "auto" else settings.by
    if by not in known[output]:
        what = {"logits": "probabilities", "embedding": "embeddings"}[output]
        raise RequestError(
            f"teacher.by={by} does not combine {what}, which these teachers give. Expected:"
            f" {' or '.join(known[output])}, or auto."
        )
    if output == "embedding":
        return EmbeddingEnsemble(members, settings.weights, by)
    return TeacherEnsemble(members, settings.weights, by)


def _build_single(node: Config) -> CompositeTeacher | None:
    files = TeacherFiles(checkpoint=node.get("checkpoint"), classes=node.get("classes") or None)
    checkpoint, classes = files.checkpoint, files.classes
    artifact = (
        open_artifact_teacher(checkpoint) if checkpoint and checkpoint.suffix == ".onnx" else None
    )
    if classes is None:
        return artifact
    teacher = artifact or build_model_spec("teacher", node, None)
    if not teacher.origin.has_weights:
        raise RequestError(
            f"teacher.classes={str(classes)!r} maps the classes of a trained teacher, but"
            f" {teacher.name} has random weights. Name pretrained weights, or remove"
            " teacher.classes."
        )
    return ClassMappedTeacher(teacher, ClassMap(classes))


def open_artifact_teacher(path: Path, key: str = "teacher.checkpoint") -> ArtifactTeacher:
    """Open an exported file as a model. Raises `RequestError` if that is impossible.

    key: the setting that names the file, for the message.
    """
    try:
        artifact, entry = open_foreign(path), read_entry(path)
    except ValueError as error:
        raise RequestError(f"{key}: {error}") from None
    return ArtifactTeacher(
        artifact,
        WeightsSource("own", path.name, path, license=entry.license),
        str(entry.record["sha256"]),
    )


def parse_assistants(node: Config | None) -> tuple[AssistantSpec, ...]:
    """The models of ``teacher.chain``, each a name or a node with a student's keys."""
    node = node or {}
    assistants = []
    for number, item in enumerate(node.get("chain") or (), start=1):
        overrides = {"name": item} if isinstance(item, str) else item
        check_assistant(overrides)
        student = {
            "_target_": FACTORY,
            "pretrained": "auto",
            "checkpoint": None,
            "kwargs": {},
            "image_size": None,
            **overrides,
        }
        spec = build_model_spec("student", student, None)
        assistants.append(AssistantSpec(spec, node.get("seed", 0) + number))
    return tuple(assistants)


def build_model_spec(role: str, node: Config, module: nn.Module | None) -> ModelSpec:
    """The spec of the model in a group of the configuration, or of a `module` passed
    from Python.
    """
    settings: Config = {
        key: node.get(key) for key in ("name", "pretrained", "checkpoint", "kwargs", "image_size")
    }
    settings["kwargs"] = settings["kwargs"] or {}
    settings["pretrained"] = "auto" if settings["pretrained"] is None else settings["pretrained"]
    if module is not None:
        settings |= {"checkpoint": None, "kwargs": {}}
        return ModelSpec(role=role, factory=_CopyFactory(module), **settings)
    target = node.get("_target_", FACTORY)
    factory = None if target == FACTORY else _find_factory(role, target)
    if node.get("embedding"):
        settings["embedding"] = node["embedding"]
    return ModelSpec(role=role, factory=factory, **settings)


def parse_model(node: Config) -> ModelSpec:
    """The spec whose ``to_json()`` is `node`."""
    if "members" in node:
        members = {name: parse_model(each) for name, each in node["members"].items()}
        if "moments" in node:
            moments = Path(node["moments"]) if node["moments"] else None
            return EmbeddingEnsemble(members, node["weights"], node["by"], moments)
        return TeacherEnsemble(members, node["weights"], node["by"])
    if "class_map" in node:
        return ClassMappedTeacher(parse_model(node["inner"]), ClassMap(Path(node["class_map"])))
    if "file" in node:
        return open_artifact_teacher(Path(node["file"]))
    if "decay" in node:
        return EmaTeacher(parse_model(node["student"]), node["decay"])
    target = node["factory"]
    return ModelSpec(**{**node, "factory": _find_factory(node["role"], target) if target else None})


def _find_factory(role: str, target: str) -> Any:
    factory = resolve_target(role, target)
    return _NamedFactory(target, factory) if callable(factory) else factory


class _NamedFactory:
    """A factory with the `target` under which another process can import it.

    The function's own name can differ, for example for a lambda or a decorated
    function.
    """

    def __init__(self, target: str, factory: Any) -> None:
        self.target = target
        self.pixels = getattr(factory, "pixels", None)
        # `inspect.signature` follows this attribute.
        self.__wrapped__ = factory
        self.__module__ = factory.__module__
        self.__qualname__ = factory.__qualname__

    def __call__(self, **kwargs: Any) -> nn.Module:
        module: nn.Module = self.__wrapped__(**kwargs)
        return module


class _CopyFactory:
    """Returns copies of one module, so that control and student start from the same
    weights.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.__module__ = type(module).__module__
        self.__qualname__ = type(module).__qualname__

    def __call__(self) -> nn.Module:
        from copy import deepcopy

        return deepcopy(self._module)
