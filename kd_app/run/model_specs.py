"""The models that a configuration names: a teacher or student, several teachers, a
teacher of other classes, the links of a chain.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from kd_app.config import RequestError
from kd_app.config.targets import FACTORY, resolve_target
from kd_app.deployment.artifact import open_artifact
from kd_app.deployment.manifest import read_entry
from kd_app.models.class_map import ClassMap
from kd_app.models.composite import ArtifactTeacher, ClassMappedTeacher, EmaTeacher, TeacherEnsemble
from kd_app.models.spec import CompositeTeacher, ModelSpec, WeightsSource
from kd_app.run.schema import EnsembleSettings, check_link

Config = dict[str, Any]


@dataclass(frozen=True)
class Link:
    """A net between teacher and student, which learns from the one before it and
    teaches the next; and the seed of its training.
    """

    request: ModelSpec
    seed: int


def build_composite(node: Config) -> CompositeTeacher | None:
    """A teacher of several, of other classes, or that is a file for another runtime;
    None for one set of weights of the data's classes.
    """
    members = node.get("members")
    if members is None:
        return _build_single(node)
    said: Config = {key: node.get(key) for key in ("members", "by", "classes")}
    asked = EnsembleSettings(**said)
    made = {
        name: _build_single(each) or build_model_spec("teacher", each, None)
        for name, each in asked.members.items()
    }
    return TeacherEnsemble(made, asked.weights, asked.by)


def _build_single(node: Config) -> CompositeTeacher | None:
    checkpoint, classes = node.get("checkpoint"), node.get("classes")
    file = (
        _open_artifact_teacher(Path(checkpoint))
        if checkpoint and Path(checkpoint).suffix == ".onnx"
        else None
    )
    if not classes:
        return file
    inner = file or build_model_spec("teacher", node, None)
    if not inner.origin.has_weights:
        raise RequestError(
            f"teacher.classes={classes!r} maps what a teacher knows, and {inner.name} has random"
            " weights. Name weights, or leave it out."
        )
    return ClassMappedTeacher(inner, ClassMap(Path(classes)))


def _open_artifact_teacher(path: Path) -> ArtifactTeacher:
    try:
        artifact, about = open_artifact(path), read_entry(path)
    except ValueError as error:
        raise RequestError(f"teacher.checkpoint: {error}") from None
    return ArtifactTeacher(
        artifact,
        WeightsSource("own", path.name, path, license=about.license),
        str(about.told["sha256"]),
    )


def parse_assistants(node: Config | None) -> tuple[Link, ...]:
    """The nets of ``teacher.chain``: names, or what a student's group says."""
    links = []
    for number, each in enumerate((node or {}).get("chain") or (), start=1):
        said = {"name": each} if isinstance(each, str) else each
        check_link(said)
        whole = {
            "_target_": FACTORY,
            "pretrained": "auto",
            "checkpoint": None,
            "kwargs": {},
            "image_size": None,
            **said,
        }
        seed = (node or {}).get("seed", 0) + number
        links.append(Link(build_model_spec("student", whole, None), seed))
    return tuple(links)


def build_model_spec(role: str, node: Config, module: nn.Module | None) -> ModelSpec:
    """A model that a group of the configuration names, or a module that somebody hands
    over.
    """
    asked: Config = {
        key: node.get(key) for key in ("name", "pretrained", "checkpoint", "kwargs", "image_size")
    }
    asked["kwargs"] = asked["kwargs"] or {}
    asked["pretrained"] = "auto" if asked["pretrained"] is None else asked["pretrained"]
    target = node.get("_target_", FACTORY)
    if module is not None:
        return ModelSpec(
            role=role, factory=_Copies(module), **{**asked, "checkpoint": None, "kwargs": {}}
        )
    if target == FACTORY:
        return ModelSpec(role=role, factory=None, **asked)
    return ModelSpec(role=role, factory=_find_factory(role, target), **asked)


def parse_model(node: Config) -> ModelSpec:
    """The model of which `node` is the `ModelRequest.to_json`."""
    if "members" in node:
        members = {name: parse_model(each) for name, each in node["members"].items()}
        return TeacherEnsemble(members, node["weights"], node["by"])
    if "class_map" in node:
        return ClassMappedTeacher(parse_model(node["inner"]), ClassMap(Path(node["class_map"])))
    if "file" in node:
        return _open_artifact_teacher(Path(node["file"]))
    if "decay" in node:
        return EmaTeacher(parse_model(node["student"]), node["decay"])
    target = node["factory"]
    return ModelSpec(**{**node, "factory": _find_factory(node["role"], target) if target else None})


def _find_factory(role: str, target: str) -> Any:
    factory = resolve_target(role, target)
    return _Named(target, factory) if callable(factory) else factory


class _Named:
    """A factory with the `target` by which another process finds it. Its own name can
    be another one: a lambda's, or that of what a decorator returned.
    """

    def __init__(self, target: str, factory: Any) -> None:
        self.target = target
        self.pixels = getattr(factory, "pixels", None)
        self.__wrapped__ = factory  # `inspect.signature` looks through it
        self.__module__ = factory.__module__
        self.__qualname__ = factory.__qualname__

    def __call__(self, **kwargs: Any) -> nn.Module:
        module: nn.Module = self.__wrapped__(**kwargs)
        return module


class _Copies:
    """A factory that gives copies of one module, so that control and student start from
    the same weights.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.__module__ = type(module).__module__
        self.__qualname__ = type(module).__qualname__

    def __call__(self) -> nn.Module:
        from copy import deepcopy

        return deepcopy(self._module)
