"""Controls: the student's training with one thing changed, to measure the effect of
distillation.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, StrictBool

from kd_app.config import RequestError, Typed
from kd_app.data.partners import PartnerKind
from kd_app.models.cost import count_macs
from kd_app.models.create import create, resolve_input
from kd_app.models.spec import ImageStats, ModelSpec, suggest_pretrained_tag
from kd_app.tasks.base import Task
from kd_app.training.job import Recipe, format_epochs

Config = dict[str, Any]
_MAX_SMOOTHING = 0.999999
_SMOOTHING_DIGITS = 6
_PARTNERS: Final[Mapping[PartnerKind, str]] = {
    "class": ", the teacher shown another image of the class",
    "all": ", the teacher shown another image",
    "view": " between two views of each image, without the teacher",
}


class ControlSettings(Typed, called="controls"):
    """One control of ``conf/controls/``. Every other setting is the student's.

    loss: the control's loss terms. student: a model in place of the student's.
    match_wall_time: train for as many epochs as fit into the wall time of the student's
    training. label_entropy_temperature: choose the label smoothing of cross_entropy
    such that the entropy of the labels equals the teacher's mean entropy at this
    temperature ('auto': the temperature of the student's first term with a
    `label_temperature`, else 1). shuffle_teacher_images: show the teacher another
    image, of the same class or of all images. self_supervised: a second view of the
    image, seen by the student itself, takes the place of the teacher.
    pseudo_label_confidence: first train on the labels alone; the
    predictions of that model with at least this probability then are labels of the
    images without one.
    """

    def __init__(
        self,
        *,
        loss: Config,
        student: Config | None = None,
        match_wall_time: StrictBool = False,
        label_entropy_temperature: Annotated[float, Field(ge=0.01, le=1000)]
        | Literal["auto"]
        | None = None,
        shuffle_teacher_images: Literal["class", "all"] | None = None,
        self_supervised: StrictBool = False,
        pseudo_label_confidence: Annotated[float, Field(ge=0, lt=1)] | None = None,
    ) -> None:
        self.loss = loss
        self.student = student
        self.match_wall_time = match_wall_time
        self.label_entropy_temperature = label_entropy_temperature
        self.shuffle_teacher_images = shuffle_teacher_images
        self.self_supervised = self_supervised
        self.pseudo_label_confidence = pseudo_label_confidence


@dataclass(frozen=True)
class Control(Recipe):
    """A recipe with settings that are resolved during the run (`ControlSettings`).

    students: candidate models, of which the one closest in cost to the student is
    trained; empty: the student's own model. named: the first candidate is the model.
    """

    students: tuple[ModelSpec, ...] = ()
    named: bool = True
    match_wall_time: bool = False
    label_entropy_temperature: float | None = None
    partners: PartnerKind | None = None
    pseudo_label_confidence: float | None = None

    def as_recipe(self, **changes: Any) -> Recipe:
        """The plain recipe, with `changes`."""
        return replace(Recipe(**self.to_json()), **changes)

    @property
    def needs_teacher(self) -> bool:
        """Whether any loss term reads the teacher."""
        return self.partners != "view" and super().needs_teacher

    @property
    def labels_images(self) -> bool:
        """Whether the control labels images by itself."""
        return self.pseudo_label_confidence is not None

    @property
    def how(self) -> str:
        duration = (
            "for as long as the student's training takes"
            if self.match_wall_time
            else f"for {format_epochs(self.max_epochs)}"
        )
        text = f"{duration} on {' + '.join(self.loss)}"
        if self.label_entropy_temperature is not None:
            text += (
                ", labels as soft as the teacher's logits at temperature"
                f" {self.label_entropy_temperature:g}"
            )
        if self.partners is not None:
            text += _PARTNERS[self.partners]
        if self.pseudo_label_confidence is not None:
            text += (
                ", other images labeled by the same network trained without them (predictions of"
                f" probability {self.pseudo_label_confidence:g} or more)"
            )
        return text

    def smooth_labels(self, entropy: float, num_classes: int) -> Recipe:
        """The recipe with label smoothing such that a label has this entropy (nats)."""
        smoothing = solve_smoothing(entropy, num_classes)
        return self.as_recipe(
            loss={
                name: {**node, "smoothing": smoothing} if "smoothing" in node else node
                for name, node in self.loss.items()
            }
        )


def check(name: str, settings: ControlSettings, task: Task) -> None:
    """Raise `RequestError` if the settings of a control contradict each other, or have
    no meaning for the task.
    """
    if settings.self_supervised and (task.reads_labels or settings.shuffle_teacher_images):
        reason = (
            "its student would have no trained classifier: set task=embedding"
            if task.reads_labels
            else "the teacher sees no image at all: remove shuffle_teacher_images"
        )
        raise RequestError(
            f"The control {name} trains the student without labels and without the teacher"
            f" (self_supervised=true), and {reason}, or leave the control out of"
            " 'controls=[...]'."
        )
    if settings.shuffle_teacher_images == "class" and not task.reads_labels:
        raise RequestError(
            f"The control {name} shows the teacher another image of the same class"
            " (shuffle_teacher_images=class), and no label is read in training"
            f" (task={task.name}). Choose the control other_images, or set"
            f" controls.{name}.shuffle_teacher_images=all."
        )
    if settings.label_entropy_temperature is not None and not any(
        "smoothing" in node for node in settings.loss.values()
    ):
        raise RequestError(
            f"controls.{name}.label_entropy_temperature={settings.label_entropy_temperature} sets"
            " the smoothing of the labels, but none of the control's loss terms"
            f" ({', '.join(settings.loss) or 'none'}) has a smoothing. Add the term cross_entropy,"
            " or remove label_entropy_temperature."
        )


def compute_mean_entropy(logits: Float[np.ndarray, "images classes"], temperature: float) -> float:
    """Mean over images of ``-sum_c p_c log p_c`` (nats), ``p = softmax(logits /
    temperature)``.
    """
    log_p = torch.from_numpy(logits).double().div(temperature).log_softmax(dim=1)
    return float(-(log_p.exp() * log_p).sum(dim=1).mean())


def compute_label_entropy(smoothing: float, num_classes: int) -> float:
    """Entropy (nats) of a label whose share `smoothing` is spread evenly over all
    classes.
    """
    other = smoothing / num_classes
    correct = 1 - smoothing + other
    return -sum(
        count * p * math.log(p) for count, p in ((1, correct), (num_classes - 1, other)) if p > 0
    )


def solve_smoothing(entropy: float, num_classes: int) -> float:
    """The smoothing whose `compute_label_entropy` is `entropy`, to 6 digits.

    The entropy grows from 0 to log K while the smoothing grows from 0 to 1.
    """
    from scipy.optimize import brentq

    if entropy >= compute_label_entropy(_MAX_SMOOTHING, num_classes):
        return _MAX_SMOOTHING

    def compute_difference(smoothing: float) -> float:
        return compute_label_entropy(smoothing, num_classes) - entropy

    root = float(brentq(compute_difference, 0.0, _MAX_SMOOTHING, xtol=1e-9))
    return round(root, _SMOOTHING_DIGITS)


@dataclass(frozen=True)
class NearestModel:
    """A model, its multiply-adds, and those of the student."""

    spec: ModelSpec
    macs: int
    student_macs: int


def select_nearest(
    candidates: Sequence[ModelSpec], student: ModelSpec, images: ImageStats, num_classes: int
) -> NearestModel:
    """The candidate of another family whose multiply-adds are closest to the student's
    in ratio; of equally close ones the first.

    Models whose timm names begin with the same letters are one family (resnet8 and
    resnet50; wrn_16_1). Skips candidates that reject this image size, and those whose
    last feature map is smaller than 2x2 while the student's is not: they waste compute
    at this resolution. If the student starts from pretrained weights, so does the
    candidate; candidates without weights in timm are skipped. Raises `RequestError` if
    no candidate is left.
    """
    student_macs, _ = _measure_cost(student, images, num_classes)
    others = [
        each for each in candidates if extract_family(each.name) != extract_family(student.name)
    ]
    suitable = list_candidates(others, student, images, num_classes)
    if not suitable:
        role = candidates[0].role
        start = "timm's pretrained weights" if student.origin.has_weights else "random weights"
        raise RequestError(
            f"None of the models in {role}.candidates is of another family than {student.name},"
            f" accepts images of {images.size}x{images.size}, and starts from {start} like the"
            f" student. Name a model: {role}.name=<a timm model>."
        )
    return select_closest(suitable, student_macs)


def list_candidates(
    candidates: Sequence[ModelSpec], student: ModelSpec, images: ImageStats, num_classes: int
) -> list[tuple[ModelSpec, int]]:
    """The candidates that can replace the student, each with its multiply-adds.

    `select_nearest` describes which ones are skipped.
    """
    _, student_side = _measure_cost(student, images, num_classes)
    suitable = []
    for candidate in candidates:
        spec = (
            _replace_weights(candidate, pretrained=True)
            if student.origin.has_weights and suggest_pretrained_tag(candidate.name)
            else candidate
        )
        if spec.origin.has_weights != student.origin.has_weights:
            continue
        try:
            macs, side = _measure_cost(spec, images, num_classes)
        except RequestError:
            continue
        if side >= min(2, student_side):
            suitable.append((spec, macs))
    return suitable


def select_closest(candidates: Sequence[tuple[ModelSpec, int]], macs: int) -> NearestModel:
    """The candidate whose multiply-adds are closest to `macs` in ratio; of equally
    close ones the first.
    """
    spec, spec_macs = min(
        candidates, key=lambda candidate: abs(math.log(max(candidate[1], 1) / max(macs, 1)))
    )
    return NearestModel(spec, spec_macs, macs)


def extract_family(name: str) -> str:
    """The letters at the start of a model's name."""
    match = re.match(r"[a-z]*", name)
    return match[0] if match else ""


def _replace_weights(spec: ModelSpec, *, pretrained: bool) -> ModelSpec:
    """The same architecture with timm's weights or with random ones."""
    return ModelSpec(
        role=spec.role,
        name=spec.origin.name,
        pretrained=pretrained,
        checkpoint=None,
        kwargs=spec.kwargs,
        image_size=spec.image_size,
        factory=None,
    )


def _measure_cost(spec: ModelSpec, images: ImageStats, num_classes: int) -> tuple[int, int]:
    """Multiply-adds, and the side (pixels) of the last feature map."""
    # With random weights if the architecture is known, so that nothing is downloaded.
    is_timm = spec.factory is None and not spec.origin.name.startswith("hf-hub:")
    input_spec = resolve_input(spec, images)
    model = create(
        _replace_weights(spec, pretrained=False) if is_timm else spec,
        input_spec,
        num_classes,
        seed=0,
    ).model
    info: Any = getattr(model, "feature_info", None)
    reduction = info[-1]["reduction"] if isinstance(info, list) and info else None
    side = 2 if reduction is None else input_spec.height // max(1, reduction)
    return count_macs(model, input_spec), side
