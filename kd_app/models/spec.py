"""Model specs: architecture and source of the weights, checked before anything is read
or fetched.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import timm
from pydantic import Field
from torch import nn

import kd_app.models.small  # noqa: F401
from kd_app.config import InputSpec, RequestError, Typed, build_unknown_error
from kd_app.config.links import check_links
from kd_app.config.recorded_files import check_recorded
from kd_app.config.typed import Side
from kd_app.config.values import shorten
from kd_app.models.class_names import ClassMatch, ModelClasses, match_classes, parse_labels
from kd_app.models.layer_widths import Widths
from kd_app.models.license import NONE, UNKNOWN
from kd_app.models.model_config import read_model_config
from kd_app.models.save import EMBEDDING, WEIGHTS
from kd_app.models.weights import WeightsReport
from kd_app.models.weights_metadata import read_metadata
from kd_app.models.weights_source import (
    Kind,
    WeightsRecord,
    WeightsSource,
    list_entries,
    read_record,
)
from kd_app.run_files import READ, RESULTS, STUDENT

_SET_ELSEWHERE = {
    "pretrained": "{role}.pretrained",
    "checkpoint_path": "{role}.checkpoint",
    "num_classes": "the number of the data's classes",
}
"""Arguments of timm.create_model, and the settings that determine them."""


@dataclass(frozen=True)
class ImageStats:
    """Images of the data, for models with random weights: channels, height, mean and
    std of the pixels (0..1), and the width if it is not the height.
    """

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    width: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.size, self.width or self.size


EmbeddingKind = Literal["pooled", "class_token", "both"]
"""The embedding of a model without a head: the input of its classifier, its class
token, or class token and mean of the patches.
"""
ImageSize = Side | Annotated[list[Side], Field(min_length=2, max_length=2)]
"""A side in pixels, or [height, width]."""


class ModelSpec(Typed):
    """A teacher or student as configured (`role` is used in messages).

    name: a timm model with or without tag, ``local-dir:<folder>``,
    ``hf-hub:<repository>``. checkpoint: a weights file, a local-dir folder, or the
    folder of a run (its student); a folder overrides `name`. pretrained: 'auto' is true
    if the name has a tag. factory: a user-provided callable that builds the module
    instead of timm. `kwargs`: arguments of timm.create_model or of the factory.
    image_size: side of the input, or [height, width]. class_order: for each class of
    the data the number of the weights' output, where it was measured; None: known by
    name. embedding: the output of a model without a head.
    """

    no_metrics_reason: ClassVar[str] = ""
    """Why this model can't be evaluated, as the predicate of a sentence; empty if it
    can.
    """

    def __init__(
        self,
        *,
        role: str,
        name: str | None,
        pretrained: bool | Literal["auto"],
        checkpoint: Path | None,
        kwargs: dict[str, Any],
        image_size: ImageSize | None,
        factory: Callable[..., nn.Module] | None,
        class_order: tuple[int, ...] | None = None,
        embedding: EmbeddingKind = "pooled",
    ) -> None:
        self.role = role
        self.embedding: EmbeddingKind = embedding
        self.class_order = class_order
        self.kwargs = kwargs
        self.image_size = image_size
        self.factory = factory
        try:
            self.origin = (
                _resolve_factory(factory, checkpoint, pretrained)
                if factory
                else _resolve_timm(role, name, pretrained, checkpoint)
            )
        except OSError as error:
            # such as a recorded name that is too long, or a folder of another user
            raise RequestError(
                f"{role}.checkpoint={shorten(repr(str(checkpoint)))} can't be looked at:"
                f" {error.strerror}. Name a file or folder that this user may read."
            ) from None
        self.match: ClassMatch | None = None
        if not factory:
            _check_arguments(role, self.origin, kwargs)

    @property
    def name(self) -> str:
        """Name of the model in tables."""
        return self.origin.name

    @cached_property
    def record(self) -> WeightsRecord:
        """What is recorded with the weights. Reads a file of weights, or the
        configuration in a hub's repository. Raises `RequestError` if that fails.
        """
        return read_record(self.origin, self.kwargs, is_timm=self.factory is None, role=self.role)

    def bind_classes(self, classes: tuple[str, ...]) -> ClassMatch:
        """Match the weights' classes to those of the data. From now on, the model is
        created with the matching outputs, or with a new classifier.

        Raises `RequestError` if the weights can't be read.
        """
        if not self.origin.has_weights:
            self.match = ClassMatch(fits=False, reason="has random weights")
        elif self.class_order is not None:
            note = "has the data's classes in another order; its outputs are reordered"
            self.match = ClassMatch(fits=True, rows=self.class_order, note=note)
        else:
            match, note = match_classes(classes, self.record.classes), self.record.note
            notes = "; ".join(each for each in (match.note, note) if each)
            self.match = replace(match, note=notes if match.fits else match.note)
        return self.match

    def bind_embedding(self) -> None:
        """Use the output of the model without a head. Raises `RequestError` for a model
        that has none.
        """
        self.match = ClassMatch(fits=True, reason="learns an embedding")

    def describe_embedding(self) -> str:
        """Which embedding the model outputs without a head."""
        is_own = self.factory is not None and self.embedding == "pooled"
        return "output of the module" if is_own else self.embedding

    def to_json(self) -> dict[str, Any]:
        """Return the arguments as plain data; a factory is recorded by the attribute
        `target`, its import path.
        """
        target = getattr(self.factory, "target", None)
        assert self.factory is None or target is not None, f"{self.name} has no import path"
        return {
            "role": self.role,
            "name": None if self.factory else self.origin.name,
            "pretrained": self.origin.has_weights,
            "checkpoint": str(self.origin.path) if self.origin.path else None,
            "kwargs": self.kwargs,
            "image_size": self.image_size,
            "factory": target,
            "class_order": self.class_order,
            "embedding": self.embedding,
        }


@dataclass(frozen=True)
class LoadedModel:
    """A model with its input spec, a report of the loaded weights, and the layer widths
    that differ from the architecture.
    """

    model: nn.Module
    pixels: InputSpec
    weights: WeightsReport
    widths: Widths = field(default_factory=dict)


class CompositeTeacher(ModelSpec):
    """A teacher built from something else than one set of weights. It is not trained.
    `bind_images`, then `bind_classes` or `bind_embedding`, must be called before the
    other methods.
    """

    image_stats: ImageStats

    def __init__(self, role: str, origin: WeightsSource, kwargs: dict[str, Any]) -> None:
        self.role, self.origin, self.kwargs = role, origin, kwargs
        self.image_size = self.factory = self.match = self.class_order = None
        self.embedding = "pooled"

    @cached_property
    def record(self) -> WeightsRecord:
        """The classes that the teacher's parts have in common, if they are known."""
        origin = self.origin
        names = origin.label_names or ()
        return WeightsRecord(ModelClasses(origin.num_classes, names), is_named=bool(names))

    def bind_images(self, image_stats: ImageStats) -> None:
        """Set the statistics of the data's images."""
        self.image_stats = image_stats

    def bind_classes(self, classes: tuple[str, ...]) -> ClassMatch:
        """Raises `RequestError` if the teacher can't predict these classes."""
        match = super().bind_classes(classes)
        if not match.fits:
            raise RequestError(
                f"The {self.role} {self.name} {match.reason} that are not the data's"
                f" {len(classes)}, and can't be trained here. Map the classes with"
                f" {self.role}.classes=<a CSV file with the columns teacher,class>."
                f" {match.detail}".rstrip()
            )
        return match

    @abstractmethod
    def expect_input(self, image_stats: ImageStats) -> InputSpec:
        """Return the input spec of the teacher."""

    @abstractmethod
    def build(self, input_spec: InputSpec, num_classes: int, *, seed: int) -> LoadedModel:
        """Build the teacher on the CPU, in eval mode."""


def _resolve_factory(
    factory: Callable[..., nn.Module], checkpoint: Path | None, pretrained: bool | Literal["auto"]
) -> WeightsSource:
    """Return the source of a factory's weights. The factory may load weights itself,
    unless ``pretrained=false``.
    """
    kind: Kind = "file" if checkpoint else "random" if pretrained is False else "own"
    if checkpoint is not None and checkpoint.is_dir():
        checkpoint = _resolve_student_folder(checkpoint) / WEIGHTS
    license = _read_license(checkpoint) if checkpoint else NONE if kind == "random" else UNKNOWN
    return WeightsSource(kind, f"{factory.__module__}:{factory.__qualname__}", checkpoint, license)


def _resolve_timm(
    role: str, name: str | None, pretrained: bool | Literal["auto"], checkpoint: Path | None
) -> WeightsSource:
    if checkpoint is not None and checkpoint.is_dir():
        return _resolve_folder(role, _resolve_student_folder(checkpoint))
    if name is None:
        raise RequestError(
            f"No {role} is named. Set {role}.name=<a timm model>, for example {role}.name=resnet18."
        )
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        check_recorded(folder)
        return _resolve_folder(role, folder)
    if name.startswith("hf-hub:"):
        return WeightsSource("hub", name)
    cfg = _find_registered(role, name)
    if checkpoint is not None:
        check_recorded(checkpoint)
        return WeightsSource("file", name, checkpoint, _read_license(checkpoint))
    if pretrained is False or (pretrained == "auto" and "." not in name):
        return WeightsSource("random", name, license=NONE)
    if not (cfg.get("hf_hub_id") or cfg.get("url") or cfg.get("file")):
        raise RequestError(
            f"{role}.pretrained=true, but timm has no weights for {name!r}. Use"
            f" {role}.pretrained=false, or a name with a tag{suggest_pretrained_tag(name)}."
        )
    return WeightsSource(
        "hub",
        name,
        None,
        cfg.get("license") or UNKNOWN,
        cfg.get("num_classes"),
        parse_labels(cfg.get("label_names")) or None,
    )


def _find_registered(role: str, name: str) -> dict[str, Any]:
    """Return timm's configuration of `name`. Raises `RequestError` for an unknown model
    or tag.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise build_unknown_error(f"{role} model", name, timm.list_models())
    tags = timm.models.get_arch_pretrained_cfgs(architecture)
    if tag and name not in tags:
        raise build_unknown_error(f"tag of {role} model {architecture}", name, tags)
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return cfg.to_dict() if cfg else {}


def _resolve_student_folder(folder: Path) -> Path:
    """Return the student folder of a run, or the folder itself. Raises `RequestError`
    if the run recorded other files there, or a link leads out of the run's folder.
    """
    if (folder / RESULTS).is_file():
        check_links(folder, READ)
        folder = folder / STUDENT
    check_recorded(folder)
    return folder


def _resolve_folder(role: str, folder: Path) -> WeightsSource:
    check_links(folder)
    try:
        config = read_model_config(folder)
    except RequestError as error:
        raise RequestError(
            f"{str(folder)!r} is not a model folder for the {role}. {error}"
        ) from None
    origin = WeightsSource(
        "folder",
        config.architecture,
        folder,
        config.recorded_license,
        0 if EMBEDDING in config.raw else config.num_classes,
        config.class_names,
    )
    if not timm.is_model(origin.name):
        raise RequestError(
            f"The model in {str(folder)!r} is a {origin.name}, which timm does not know: it was"
            f" built by a user-provided factory. Name the factory with {role}._target_ and set"
            f" {role}.checkpoint={folder}."
        )
    return origin


def _read_license(weights: Path) -> str:
    """Return the license from the metadata of a weights file, or from the config.json
    in the same folder.
    """
    if license := read_metadata(weights).get("license"):
        return license
    try:
        return read_model_config(weights.parent).recorded_license
    except RequestError:
        return UNKNOWN


def _check_arguments(role: str, origin: WeightsSource, kwargs: dict[str, Any]) -> None:
    """Raises `RequestError` for arguments that the model does not take. Allocates no
    weights.
    """
    for key, setting in _SET_ELSEWHERE.items():
        if key in kwargs:
            raise RequestError(
                f"{role}.kwargs.{key}={kwargs[key]!r} can't be set: the value comes from"
                f" {setting.format(role=role)}. Remove it."
            )
    if origin.kind == "folder" or origin.name.startswith("hf-hub:"):
        return
    try:
        list_entries(origin.name.split(".")[0], kwargs)
    except TypeError as error:
        raise RequestError(
            f"{role}.kwargs={kwargs!r} do not fit {origin.name}: {error}. See timm.create_model for"
            " the arguments."
        ) from None


def suggest_pretrained_tag(name: str) -> str:
    """Return ', for example x.y' with a pretrained tag of `name`, preferring timm's
    default, or '' if there is none.
    """
    architecture = name.split(".", maxsplit=1)[0]
    cfg = (
        timm.get_pretrained_cfg(architecture, allow_unregistered=True)
        if timm.is_model(architecture)
        else None
    )
    if cfg is None or not cfg.tag or not (cfg.hf_hub_id or cfg.url):
        return ""
    return f", for example {architecture}.{cfg.tag}"
