"""Teachers that are made of other things than one set of weights: several models, a
model of other classes, a file for another runtime.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from kd_app.config import InputSpec, RequestError
from kd_app.models.class_map import ClassMap, KnownClasses, Mapped
from kd_app.models.create import LoadedModel, create, resolve_input
from kd_app.models.license import Policy
from kd_app.models.outputs import LogitsOnly
from kd_app.models.spec import CompositeTeacher, ImageStats, ModelSpec, WeightsSource
from kd_app.models.teacher import InputAdapter
from kd_app.models.weights import WeightsReport

By = Literal["mean", "confidence"]
_LEAST = 1e-3
"""What a member that is not sure of anything still counts."""


class ClassMappedTeacher(CompositeTeacher):
    """A teacher whose own classes are brought to the data's by a class map."""

    def __init__(self, inner: ModelSpec, class_map: ClassMap) -> None:
        super().__init__(
            inner.role, replace(inner.origin, num_classes=None, label_names=None), inner.kwargs
        )
        self.inner, self.class_map = inner, class_map
        self._rows: list[list[int]] = []

    def bind_data(self, classes: tuple[str, ...], seen: ImageStats) -> None:
        """Raises `RequestError` for rows that name no class, and for classes of the
        data that no row gives.
        """
        super().bind_data(classes, seen)
        self._rows = self.class_map.map_rows(classes, find_known_classes(self.inner))

    def to_json(self) -> dict[str, Any]:
        """As `ModelRequest.to_json`."""
        return {"inner": self.inner.to_json(), "class_map": str(self.class_map.path)}

    def expect_input(self, seen: ImageStats) -> InputSpec:
        """The model's own."""
        return resolve_input(self.inner, seen)

    def build(self, pixels: InputSpec, num_classes: int, *, seed: int) -> LoadedModel:
        """The model as it is, with the map behind its logits."""
        made = create(self.inner, pixels, find_known_classes(self.inner).count, seed=seed)
        weights = made.weights
        sha256 = hashlib.sha256(f"{weights.sha256}:{self._rows}".encode()).hexdigest()
        report = replace(
            weights,
            source=f"{weights.source}, classes by {self.class_map.path.name}",
            sha256=sha256,
        )
        return replace(made, model=Mapped(made.model, self._rows), weights=report)


def find_known_classes(request: ModelSpec) -> KnownClasses:
    """The classes of a model's weights. Raises `RequestError` where nobody says how
    many they are.
    """
    origin = request.origin
    if origin.num_classes is None:
        raise RequestError(
            f"How many classes the teacher {request.name} answers in is not known, so"
            " teacher.classes can't map them. Expected a tag of timm's, a run, a folder in timm's"
            " local-dir layout, or an exported file."
        )
    return KnownClasses(origin.num_classes, origin.label_names or _load_imagenet_names(origin))


def _load_imagenet_names(origin: WeightsSource) -> tuple[str, ...]:
    """The names of ImageNet's classes (WordNet's numbers, ``n01440764``), where the
    weights are of one of its sets.
    """
    from timm.data import ImageNetInfo

    sets = {
        1000: "imagenet-1k",
        11221: "imagenet-21k-miil",
        11821: "imagenet-12k",
        21841: "imagenet-22k",
        21843: "imagenet-21k-goog",
    }
    if origin.kind != "hub" or origin.num_classes not in sets:
        return ()
    return tuple(ImageNetInfo(sets[origin.num_classes]).label_names())


class EmaTeacher(CompositeTeacher):
    """The average of a student's own weights, which moves with it: at first it is the
    student. There is none to measure before the training.

    Tarvainen & Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv
    1703.01780.
    """

    unmeasured: ClassVar[str] = "is the student's own"

    def __init__(self, student: ModelSpec, decay: float) -> None:
        origin = WeightsSource(
            "own", f"average of {student.name} (decay {decay:g})", license=student.origin.license
        )
        super().__init__("teacher", origin, {})
        self.student, self.decay = student, decay

    def to_json(self) -> dict[str, Any]:
        """As `ModelRequest.to_json`."""
        return {"student": self.student.to_json(), "decay": self.decay}

    def expect_input(self, seen: ImageStats) -> InputSpec:
        """The student's."""
        return resolve_input(self.student, seen)

    def build(self, pixels: InputSpec, num_classes: int, *, seed: int) -> LoadedModel:
        """A net like the student; a training replaces its weights by its own student's
        first ones.
        """
        return create(self.student, pixels, num_classes, seed=seed)


class TeacherEnsemble(CompositeTeacher):
    """Several teachers that answer as one: ``log sum_m w_m p_m`` of their
    probabilities.

    `weights` are the members' shares. by: 'mean' leaves it at these; 'confidence'
    multiplies them, image by image, by how sure a member is, ``1 - H(p_m) / ln K``,
    after Kwon et al., "Adaptive knowledge distillation based on entropy", ICASSP 2020.
    Members see the image at the size of the largest of them, and resize it to their
    own.
    """

    def __init__(
        self, members: Mapping[str, ModelSpec], weights: Mapping[str, float], by: By
    ) -> None:
        license = Policy().find_strictest(*(member.origin.license for member in members.values()))
        super().__init__("teacher", WeightsSource("own", " + ".join(members), license=license), {})
        self.members, self.weights, self.by = dict(members), dict(weights), by

    def bind_data(self, classes: tuple[str, ...], seen: ImageStats) -> None:
        """Raises `RequestError` for a member that does not answer in these classes."""
        super().bind_data(classes, seen)
        for name, member in self.members.items():
            if isinstance(member, CompositeTeacher):
                member.bind_data(classes, seen)
            elif not member.origin.matches_classes(classes):
                raise _build_not_ready_error(name, member)

    def to_json(self) -> dict[str, Any]:
        """As `ModelRequest.to_json`."""
        members = {name: member.to_json() for name, member in self.members.items()}
        return {"members": members, "weights": self.weights, "by": self.by}

    def expect_input(self, seen: ImageStats) -> InputSpec:
        """The data's, at the size and crop of the largest member."""
        largest = max(
            (resolve_input(member, seen) for member in self.members.values()),
            key=lambda each: each.height,
        )
        return replace(largest, channels=seen.channels, mean=seen.mean, std=seen.std)

    def build(self, pixels: InputSpec, num_classes: int, *, seed: int) -> LoadedModel:
        """All of them, as one module."""
        created = {
            name: create(member, resolve_input(member, self.seen), num_classes, seed=seed)
            for name, member in self.members.items()
        }
        for name, each in created.items():
            if each.weights.new_head:
                raise _build_not_ready_error(name, self.members[name])
        told = "; ".join(f"{name}: {each.weights.source}" for name, each in created.items())
        identity = [(each.weights.sha256, self.weights[name]) for name, each in created.items()]
        sha256 = hashlib.sha256(f"{self.by}:{identity}".encode()).hexdigest()
        model = EnsembleModel(
            {name: (each.model, each.pixels) for name, each in created.items()},
            list(self.weights.values()),
            self.by,
            pixels,
        )
        return LoadedModel(
            model.eval(),
            pixels,
            WeightsReport(told, sha256, sum(each.weights.matched for each in created.values())),
        )


def _build_not_ready_error(name: str, member: ModelSpec) -> RequestError:
    return RequestError(
        f"The teacher's member {name} ({member.name}) does not answer in the data's classes; of"
        " several teachers each has to be ready. Train it first (kd-distill teacher=none"
        f" 'loss=[cross_entropy]' student.name={member.name} out=runs/{name}) and say"
        f" teacher.members.{name}.checkpoint=runs/{name}, or map its classes with"
        f" teacher.members.{name}.classes=<file.csv>."
    )


class EnsembleModel(LogitsOnly):
    """See `TeacherEnsemble`; takes images normalized as `pixels` say."""

    shares: Tensor

    def __init__(
        self,
        members: Mapping[str, tuple[nn.Module, InputSpec]],
        shares: list[float],
        by: By,
        pixels: InputSpec,
    ) -> None:
        super().__init__(
            "several teachers have one answer together and nothing else in common;"
            " loss.<term>.teacher=<member> names the one that a term reads"
        )
        self.names = tuple(members)
        self.models = nn.ModuleList(model for model, _ in members.values())
        self.views = nn.ModuleList(InputAdapter(pixels, wants) for _, wants in members.values())
        self.by = by
        self.register_buffer("shares", torch.tensor(shares) / sum(shares))

    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Log-probabilities ``[B, K]``; their softmax is the weighted mean of the
        members' probabilities.
        """
        return self.combine(image, {})

    def select_member(self, name: str) -> tuple[nn.Module, nn.Module]:
        """What turns an image into what this member expects, and the member."""
        number = self.names.index(name)
        return self.views[number], self.models[number]

    def combine(self, image: Tensor, known: Mapping[str, Tensor]) -> Tensor:
        """As `forward`; `known`: the logits of members that were asked already."""
        each = zip(self.names, self.models, self.views, strict=True)
        logits = [
            known[name] if name in known else model(view(image)) for name, model, view in each
        ]
        answers = [answer.float().log_softmax(dim=-1) for answer in logits]
        log_p = torch.stack(answers)
        shares = self.shares[:, None].expand(log_p.shape[:2])
        if self.by == "confidence":
            entropy = -(log_p.exp() * log_p).sum(dim=-1)
            shares = shares * (1 - entropy / np.log(log_p.shape[-1])).clamp_min(_LEAST)
        return torch.logsumexp(log_p + (shares / shares.sum(dim=0)).log()[..., None], dim=0)


@runtime_checkable
class SupportsLogits(Protocol):
    """A file that its own runtime runs: uint8 images ``[B, C, H, W]`` of `pixels` in,
    logits ``[B, K]`` out.
    """

    classes: tuple[str, ...]
    pixels: InputSpec

    @abstractmethod
    def infer_logits(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Logits."""


class ArtifactTeacher(CompositeTeacher):
    """A teacher that is a file for another runtime (ONNX)."""

    def __init__(self, artifact: SupportsLogits, origin: WeightsSource, sha256: str) -> None:
        super().__init__(
            "teacher",
            replace(origin, num_classes=len(artifact.classes), label_names=artifact.classes),
            {},
        )
        self.artifact, self.sha256 = artifact, sha256

    def to_json(self) -> dict[str, Any]:
        """As `ModelRequest.to_json`."""
        return {"file": str(self.origin.path)}

    def expect_input(self, seen: ImageStats) -> InputSpec:
        """As its manifest has them."""
        return self.artifact.pixels

    def build(self, pixels: InputSpec, num_classes: int, *, seed: int) -> LoadedModel:
        """The file, as a module."""
        return LoadedModel(
            RuntimeModel(self.artifact),
            pixels,
            WeightsReport(f"file {self.origin.name}", self.sha256, 0),
        )


class RuntimeModel(LogitsOnly):
    """A file behind the face of a module: normalized images become the uint8 images
    that it takes. It runs where its runtime does, on the CPU.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, artifact: SupportsLogits) -> None:
        super().__init__("a file for another runtime gives its logits alone")
        self._artifact = artifact
        shape = (1, -1, 1, 1)
        self.register_buffer(
            "mean", torch.tensor(artifact.pixels.mean).view(shape), persistent=False
        )
        self.register_buffer("std", torch.tensor(artifact.pixels.std).view(shape), persistent=False)

    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Logits ``[B, K]``."""
        raw = ((image * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8).cpu()
        return torch.from_numpy(self._artifact.infer_logits(raw.contiguous().numpy())).to(
            image.device
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "RuntimeModel":
        return self
