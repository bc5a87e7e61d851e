"""Composite teachers: ensembles, class-mapped models, EMA of the student, files for
other runtimes.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from kd_app.config import Decoding, InputSpec, RequestError
from kd_app.models.class_map import ClassMap, ClassMappedModel
from kd_app.models.class_names import ClassMatch, ModelClasses
from kd_app.models.create import create, resolve_input
from kd_app.models.license import Policy
from kd_app.models.outputs import LogitsOnly
from kd_app.models.spec import CompositeTeacher, ImageStats, LoadedModel, ModelSpec
from kd_app.models.teacher import InputAdapter
from kd_app.models.weights import WeightsReport
from kd_app.models.weights_source import WeightsSource

By = Literal["mean", "confidence"]
_MIN_CONFIDENCE = 1e-3
"""Smallest weight of a member whose prediction is uniform."""


class ClassMappedTeacher(CompositeTeacher):
    """A teacher whose classes are mapped to the data's classes by a `ClassMap`."""

    def __init__(self, inner: ModelSpec, class_map: ClassMap) -> None:
        super().__init__(
            inner.role, replace(inner.origin, num_classes=None, label_names=None), inner.kwargs
        )
        self.inner, self.class_map = inner, class_map
        self._rows: list[list[int]] = []

    def bind_classes(self, classes: tuple[str, ...]) -> ClassMatch:
        """Raises `RequestError` for a row with an unknown class, and for a class of the
        data without a row.
        """
        match = super().bind_classes(classes)
        self._rows = self.class_map.map_rows(classes, find_model_classes(self.inner))
        return match

    def to_json(self) -> dict[str, Any]:
        return {"inner": self.inner.to_json(), "class_map": str(self.class_map.path)}

    def expect_input(self, image_stats: ImageStats) -> InputSpec:
        return resolve_input(self.inner, image_stats)

    def build(self, input_spec: InputSpec, num_classes: int, *, seed: int) -> LoadedModel:
        """Build the inner model with the class map behind the logits."""
        count = find_model_classes(self.inner).count
        assert count is not None
        loaded = create(self.inner, input_spec, count, seed=seed)
        weights = loaded.weights
        if weights.new_head:
            raise _build_headless_error(self.inner)
        sha256 = hashlib.sha256(f"{weights.sha256}:{self._rows}".encode()).hexdigest()
        report = replace(
            weights,
            source=f"{weights.source}, classes by {self.class_map.path.name}",
            sha256=sha256,
        )
        return replace(loaded, model=ClassMappedModel(loaded.model, self._rows), weights=report)


def find_model_classes(spec: ModelSpec) -> ModelClasses:
    """The classes of the model's weights. Raises `RequestError` if the number of
    classes is unknown.
    """
    classes = spec.record.classes
    if not classes.count:
        raise _build_headless_error(spec)
    return classes


def _build_headless_error(spec: ModelSpec) -> RequestError:
    return RequestError(
        f"No classifier was found in the weights of the teacher {spec.name}, so teacher.classes"
        " can't map its classes. Train a classifier for the data's classes instead (remove"
        " teacher.classes, and set teacher.max_epochs to 1 or more), or name weights with one: a"
        " timm model with a tag, a run, a folder in timm's local-dir layout, a file of weights"
        " with a classifier, or an exported file."
    )


class EmaTeacher(CompositeTeacher):
    """The exponential moving average of the student's weights. At the start the average
    equals the student, so there is no teacher to evaluate before the training.

    Tarvainen & Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv
    1703.01780.
    """

    no_metrics_reason: ClassVar[str] = "is the student's own"

    def __init__(self, student: ModelSpec, decay: float) -> None:
        origin = WeightsSource(
            "own", f"average of {student.name} (decay {decay:g})", license=student.origin.license
        )
        super().__init__("teacher", origin, {})
        self.student, self.decay = student, decay

    def to_json(self) -> dict[str, Any]:
        return {"student": self.student.to_json(), "decay": self.decay}

    def expect_input(self, image_stats: ImageStats) -> InputSpec:
        return resolve_input(self.student, image_stats)

    def build(self, input_spec: InputSpec, num_classes: int, *, seed: int) -> LoadedModel:
        """Build a model like the student. The training replaces the weights by the
        student's initial weights.
        """
        return create(self.student, input_spec, num_classes, seed=seed)


class TeacherEnsemble(CompositeTeacher):
    """Several teachers whose probabilities are averaged: ``log sum_m w_m p_m``.

    `weights` are the weights of the members. by: 'mean' uses them as they are;
    'confidence' multiplies each, per image, by the confidence of the member, ``1 -
    H(p_m) / ln K``, after Kwon et al., "Adaptive knowledge distillation based on
    entropy", ICASSP 2020. The input of the ensemble has the size of the member with the
    largest input; each member resizes the image to its own size.
    """

    def __init__(
        self, members: Mapping[str, ModelSpec], weights: Mapping[str, float], by: By
    ) -> None:
        license = Policy().find_strictest(*(member.origin.license for member in members.values()))
        super().__init__("teacher", WeightsSource("own", " + ".join(members), license=license), {})
        self.members, self.weights, self.by = dict(members), dict(weights), by

    def bind_images(self, image_stats: ImageStats) -> None:
        super().bind_images(image_stats)
        for member in self.members.values():
            if isinstance(member, CompositeTeacher):
                member.bind_images(image_stats)

    def bind_classes(self, classes: tuple[str, ...]) -> ClassMatch:
        """Raises `RequestError` for a member that does not predict these classes."""
        for name, member in self.members.items():
            if not member.bind_classes(classes).fits:
                raise _build_not_ready_error(name, member)
        return super().bind_classes(classes)

    def to_json(self) -> dict[str, Any]:
        members = {name: member.to_json() for name, member in self.members.items()}
        return {"members": members, "weights": self.weights, "by": self.by}

    def expect_input(self, image_stats: ImageStats) -> InputSpec:
        """The data's channels and statistics, at the size and crop of the
        largest member.
        """
        largest = max(
            (resolve_input(member, image_stats) for member in self.members.values()),
            key=lambda each: each.height,
        )
        return replace(
            largest, channels=image_stats.channels, mean=image_stats.mean, std=image_stats.std
        )

    def build(self, input_spec: InputSpec, num_classes: int, *, seed: int) -> LoadedModel:
        """Build all members as one `EnsembleModel`."""
        models = {
            name: create(member, resolve_input(member, self.image_stats), num_classes, seed=seed)
            for name, member in self.members.items()
        }
        for name, each in models.items():
            if each.weights.new_head:
                raise _build_not_ready_error(name, self.members[name])
        source = "; ".join(f"{name}: {each.weights.source}" for name, each in models.items())
        identity = [(each.weights.sha256, self.weights[name]) for name, each in models.items()]
        sha256 = hashlib.sha256(f"{self.by}:{identity}".encode()).hexdigest()
        model = EnsembleModel(
            {name: (each.model, each.pixels) for name, each in models.items()},
            list(self.weights.values()),
            self.by,
            input_spec,
        )
        matched = sum(each.weights.matched for each in models.values())
        notes = tuple(
            f"has the member {name}, which {note}"
            for name, each in models.items()
            for note in each.weights.notes
        )
        report = WeightsReport(source, sha256, matched, notes=notes)
        return LoadedModel(model.eval(), input_spec, report)


def _build_not_ready_error(name: str, member: ModelSpec) -> RequestError:
    return RequestError(
        f"The teacher's member {name} ({member.name}) does not predict the data's classes. The"
        " members of an ensemble are not trained by this run. Train the member first (kd-distill"
        f" teacher=none 'loss=[cross_entropy]' student.name={member.name} out=runs/{name}) and set"
        f" teacher.members.{name}.checkpoint=runs/{name}, or map the classes with"
        f" teacher.members.{name}.classes=<file.csv>."
    )


class EnsembleModel(LogitsOnly):
    """The module of a `TeacherEnsemble`. Input: images normalized according to
    `input_spec`.
    """

    shares: Tensor

    def __init__(
        self,
        members: Mapping[str, tuple[nn.Module, InputSpec]],
        shares: list[float],
        by: By,
        input_spec: InputSpec,
    ) -> None:
        super().__init__(
            "several teachers give combined logits and nothing else in common;"
            " loss.<term>.teacher=<member> selects the member that a term reads"
        )
        self.names = tuple(members)
        self.models = nn.ModuleList(model for model, _ in members.values())
        self.views = nn.ModuleList(InputAdapter(input_spec, each) for _, each in members.values())
        self.by = by
        self.register_buffer("shares", torch.tensor(shares) / sum(shares))

    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return log-probabilities ``[B, K]``: the log of the weighted mean of the
        members' probabilities.
        """
        return self.combine(image, {})

    def select_member(self, name: str) -> tuple[nn.Module, nn.Module]:
        """The input adapter of a member, and the member."""
        number = self.names.index(name)
        return self.views[number], self.models[number]

    def combine(self, image: Tensor, logits: Mapping[str, Tensor]) -> Tensor:
        """The output of `forward`. `logits`: precomputed logits of members, used
        instead of running the member.
        """
        members = zip(self.names, self.models, self.views, strict=True)
        all_logits = [
            logits[name] if name in logits else model(view(image)) for name, model, view in members
        ]
        log_p = torch.stack([each.float().log_softmax(dim=-1) for each in all_logits])
        shares = self.shares[:, None].expand(log_p.shape[:2])
        if self.by == "confidence":
            entropy = -(log_p.exp() * log_p).sum(dim=-1)
            shares = shares * (1 - entropy / np.log(log_p.shape[-1])).clamp_min(_MIN_CONFIDENCE)
        return torch.logsumexp(log_p + (shares / shares.sum(dim=0)).log()[..., None], dim=0)


@runtime_checkable
class SupportsLogits(Protocol):
    """A model run by another runtime: uint8 images ``[B, C, H, W]`` of size `pixels`
    in, logits ``[B, K]`` out, or an embedding if it has no classes. decoding: of the
    image files.
    """

    classes: tuple[str, ...]
    pixels: InputSpec
    decoding: Decoding

    @abstractmethod
    def infer_logits(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Return logits ``[B, K]``."""


class ArtifactTeacher(CompositeTeacher):
    """A teacher exported for another runtime (ONNX)."""

    def __init__(self, artifact: SupportsLogits, origin: WeightsSource, sha256: str) -> None:
        super().__init__(
            "teacher",
            replace(origin, num_classes=len(artifact.classes), label_names=artifact.classes),
            {},
        )
        self.artifact, self.sha256 = artifact, sha256

    def bind_classes(self, classes: tuple[str, ...]) -> ClassMatch:
        """Raises `RequestError` for a file that outputs an embedding."""
        if not self.artifact.classes:
            raise RequestError(
                f"The teacher {self.name} is a file that outputs an embedding, and classes are"
                " learned from logits. Name a file that outputs logits (an export of a run that"
                " learned classes), or set task=embedding."
            )
        return super().bind_classes(classes)

    def bind_embedding(self) -> None:
        """Raises `RequestError` for a file that outputs logits."""
        if self.artifact.classes:
            raise RequestError(
                f"The teacher {self.name} is a file that outputs logits of"
                f" {len(self.artifact.classes)} classes, and its embedding can't be read from"
                " outside. Expected for task=embedding: a file that outputs an embedding"
                " (kd-export of a run with task=embedding), or the weights themselves"
                " (teacher.checkpoint=<file or folder>)."
            )
        super().bind_embedding()

    def describe_embedding(self) -> str:
        return "output of the file"

    def to_json(self) -> dict[str, Any]:
        return {"file": str(self.origin.path)}

    def expect_input(self, image_stats: ImageStats) -> InputSpec:
        return self.artifact.pixels

    def build(self, input_spec: InputSpec, num_classes: int, *, seed: int) -> LoadedModel:
        match, sha256 = self.match, self.sha256
        rows = match.rows if match else None
        if rows is not None:
            sha256 = hashlib.sha256(f"{sha256}:{list(rows)}".encode()).hexdigest()
        notes = (match.note,) if match and match.note else ()
        report = WeightsReport(f"file {self.origin.name}", sha256, 0, notes=notes)
        return LoadedModel(RuntimeModel(self.artifact, rows), input_spec, report)


class RuntimeModel(LogitsOnly):
    """An exported file as a module: converts normalized images back to uint8 and runs
    the file in its runtime, on the CPU. rows: the outputs to return, in this order;
    None: all.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, artifact: SupportsLogits, rows: Sequence[int] | None = None) -> None:
        super().__init__("a file for another runtime gives only logits")
        self._artifact = artifact
        self._rows = None if rows is None else list(rows)
        shape = (1, -1, 1, 1)
        self.register_buffer(
            "mean", torch.tensor(artifact.pixels.mean).view(shape), persistent=False
        )
        self.register_buffer("std", torch.tensor(artifact.pixels.std).view(shape), persistent=False)

    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        raw = ((image * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8).cpu()
        logits = torch.from_numpy(self._artifact.infer_logits(raw.contiguous().numpy()))
        return (logits if self._rows is None else logits[:, self._rows]).to(image.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> "RuntimeModel":
        return self
