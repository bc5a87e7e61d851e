"""Controls: the student's training with something changed, so that one sees what
distilling was worth.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, StrictBool

from kd_app.config import RequestError, Typed
from kd_app.models.cost import count_macs
from kd_app.models.create import create, resolve_input
from kd_app.models.spec import ImageStats, ModelSpec, suggest_pretrained_tag
from kd_app.training.job import Recipe, format_epochs

Config = dict[str, Any]
_LARGEST = 0.999999
_DIGITS = 6
"""Of a smoothing that was computed."""


class ControlSettings(Typed, called="controls"):
    """One control of ``conf/controls/``; what it does not say is as the student has it.

    loss: its loss terms. student: another net than the student's. match_wall_time: for as many
    epochs as the student's training takes in wall time. label_entropy_temperature: the smoothing of
    its cross_entropy makes a label's entropy the teacher's mean entropy at this
    temperature ('auto': that of the student's first term with a `label_temperature`,
    else 1). shuffle_teacher_images: the teacher is shown another image of the same class in the
    place of each.
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
        shuffle_teacher_images: StrictBool = False,
    ) -> None:
        self.loss = loss
        self.student = student
        self.match_wall_time = match_wall_time
        self.label_entropy_temperature = label_entropy_temperature
        self.shuffle_teacher_images = shuffle_teacher_images


@dataclass(frozen=True)
class Control(Recipe):
    """A recipe that is settled when its turn comes; see `ControlSettings`.

    students: the nets of which the one nearest in cost to the student is taken; empty:
    the student's own. named: the first of them is meant.
    """

    students: tuple[ModelSpec, ...] = ()
    named: bool = True
    match_wall_time: bool = False
    label_entropy_temperature: float | None = None
    shuffle_teacher_images: bool = False

    def as_recipe(self, **changes: Any) -> Recipe:
        """The recipe alone, with `changes`."""
        return replace(Recipe(**self.to_json()), **changes)

    @property
    def how(self) -> str:
        """As `Recipe.how`."""
        long = (
            "for as long as the student's training takes"
            if self.match_wall_time
            else f"for {format_epochs(self.max_epochs)}"
        )
        soft = (
            f", labels as soft as the teacher's answers at temperature {self.label_entropy_temperature:g}"
            if self.label_entropy_temperature is not None
            else ""
        )
        return (
            f"{long} on"
            f" {' + '.join(self.loss)}{soft}{', the teacher shown another image of the class' if self.shuffle_teacher_images else ''}"
        )

    def smooth_labels(self, entropy: float, num_classes: int) -> Recipe:
        """With labels of this entropy (nats)."""
        smoothing = solve_smoothing(entropy, num_classes)
        return self.as_recipe(
            loss={
                name: {**node, "smoothing": smoothing} if "smoothing" in node else node
                for name, node in self.loss.items()
            }
        )


def check(name: str, settings: ControlSettings) -> None:
    """Refuse settings that do not go together (`RequestError`)."""
    if settings.label_entropy_temperature is not None and not any(
        "smoothing" in node for node in settings.loss.values()
    ):
        raise RequestError(
            f"controls.{name}.label_entropy_temperature={settings.label_entropy_temperature} sets the smoothing of the labels,"
            f" and none of its loss terms ({', '.join(settings.loss) or 'none'}) has one. Give it"
            " the term cross_entropy, or leave label_entropy_temperature out."
        )


def compute_mean_entropy(logits: Float[np.ndarray, "images classes"], temperature: float) -> float:
    """Mean over the images of ``-sum_c p_c log p_c`` (nats), ``p = softmax(logits /
    temperature)``.
    """
    log_p = torch.from_numpy(logits).double().div(temperature).log_softmax(dim=1)
    return float(-(log_p.exp() * log_p).sum(dim=1).mean())


def label_entropy(smoothing: float, num_classes: int) -> float:
    """Entropy (nats) of a label of which the share `smoothing` is spread evenly over
    all classes.
    """
    others = smoothing / num_classes
    own = 1 - smoothing + others
    return -sum(
        count * p * math.log(p) for count, p in ((1, own), (num_classes - 1, others)) if p > 0
    )


def solve_smoothing(entropy: float, num_classes: int) -> float:
    """The smoothing whose `label_entropy` is `entropy`, to 6 digits; it grows from 0 to
    log K as the smoothing does from 0 to 1.
    """
    from scipy.optimize import brentq

    if entropy >= label_entropy(_LARGEST, num_classes):
        return _LARGEST
    return round(
        float(
            brentq(
                lambda smoothing: label_entropy(smoothing, num_classes) - entropy,
                0.0,
                _LARGEST,
                xtol=1e-9,
            )
        ),
        _DIGITS,
    )


@dataclass(frozen=True)
class NearestModel:
    """A net and its multiply-adds, beside the student's."""

    request: ModelSpec
    macs: int
    student_macs: int


def select_nearest(
    candidates: Sequence[ModelSpec], student: ModelSpec, seen: ImageStats, num_classes: int
) -> NearestModel:
    """Of the candidates of another family than the student's the one with the nearest
    number of multiply-adds (in ratio; of equals the first).

    A family is what shares the letters that timm's name begins with (resnet8 and
    resnet50; wrn_16_1). Left out are nets that can't take such images, or that leave a
    map of less than 2x2 of them where the student leaves more: their cost is wasted on
    images of this size. Where the student starts from weights, so does the net, and one
    for which timm has none is left out. Raises `RequestError` where nothing is left.
    """
    ours, _ = _measure_cost(student, seen, num_classes)
    found = list_candidates(
        [each for each in candidates if extract_family(each.name) != extract_family(student.name)],
        student,
        seen,
        num_classes,
    )
    if not found:
        role = candidates[0].role
        raise RequestError(
            f"None of the nets in {role}.candidates is of another family than {student.name}, can take"
            f" images of {seen.size}x{seen.size}, and starts from"
            f" {'weights of timm' if student.origin.has_weights else 'random weights'} as the"
            f" student does. Name one: {role}.name=<a timm model>."
        )
    return select_closest(found, ours)


def list_candidates(
    candidates: Sequence[ModelSpec], student: ModelSpec, seen: ImageStats, num_classes: int
) -> list[tuple[ModelSpec, int]]:
    """The candidates that could stand in the student's place, and their multiply-adds;
    see `select_nearest` for those that are left out.
    """
    _, deepest = _measure_cost(student, seen, num_classes)
    found = []
    for each in candidates:
        used = (
            _respecify(each, pretrained=True)
            if student.origin.has_weights and suggest_pretrained_tag(each.name)
            else each
        )
        if used.origin.has_weights != student.origin.has_weights:
            continue
        try:
            macs, left = _measure_cost(used, seen, num_classes)
        except RequestError:
            continue
        if left >= min(2, deepest):
            found.append((used, macs))
    return found


def select_closest(found: Sequence[tuple[ModelSpec, int]], macs: int) -> NearestModel:
    """Of some nets and their multiply-adds the one nearest to `macs` in ratio; of
    equals the first.
    """
    request, own = min(found, key=lambda one: abs(math.log(max(one[1], 1) / max(macs, 1))))
    return NearestModel(request, own, macs)


def extract_family(name: str) -> str:
    """The letters that a name begins with."""
    found = re.match(r"[a-z]*", name)
    return found[0] if found else ""


def _respecify(request: ModelSpec, *, pretrained: bool) -> ModelSpec:
    """The same architecture, with timm's weights or with random ones."""
    more: Config = {
        "kwargs": request.kwargs,
        "image_size": request.image_size,
        "checkpoint": None,
        "factory": None,
    }
    return ModelSpec(role=request.role, name=request.origin.name, pretrained=pretrained, **more)


def _measure_cost(request: ModelSpec, seen: ImageStats, num_classes: int) -> tuple[int, int]:
    """Multiply-adds, and the side of the deepest map; from random weights where that is
    possible, so that nothing is fetched.
    """
    known = request.factory is None and not request.origin.name.startswith("hf-hub:")
    pixels = resolve_input(request, seen)
    model = create(
        _respecify(request, pretrained=False) if known else request, pixels, num_classes, seed=0
    ).model
    info: Any = getattr(model, "feature_info", None)
    side = pixels.height // max(1, info[-1]["reduction"]) if isinstance(info, list) and info else 2
    return count_macs(model, pixels), side
