"""Base class of the terms on logits."""

import math
from typing import ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm, TermPart
from kd_app.models.outputs import Outputs

_EPSILON = 1e-7
_FEWEST_STANDARDIZED = 3
ONE_OTHER: Final = "of two classes there is only one other class, whose share is always 1"
"""Why the distribution over the other classes says nothing."""


class LogitTerm(LossTerm):
    """A term on the logits of both models. With `standardize` the logits are
    standardized first.
    """

    level: ClassVar[Level] = "output"

    def __init__(self, *, standardize: bool) -> None:
        super().__init__()
        self.standardize = standardize

    @property
    def teacher_temperature(self) -> float | None:
        return None if self.standardize else self.label_temperature

    def list_parts(self) -> tuple[TermPart, ...]:
        return (self.build_part(),)

    def build_part(
        self, name: str = "", *, min_classes: int = 2, min_images: int = 1, why: str = ""
    ) -> TermPart:
        """Describe a part that reads the logits as they are prepared."""
        if self.standardize and min_classes < _FEWEST_STANDARDIZED:
            return TermPart(
                name,
                _FEWEST_STANDARDIZED,
                min_images,
                "two standardized logits differ only in their sign",
                "Set standardize=false",
            )
        return TermPart(name, min_classes, min_images, why)

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Raises `RequestError` if the term is void for the number of classes."""
        assert student.logits is not None
        self.check_scope(num_classes=student.logits.shape[1])

    def prepare_logits(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """Return the logits [B, K] of both models, standardized if configured."""
        assert student.logits is not None
        assert teacher.logits is not None
        if not self.standardize:
            return student.logits, teacher.logits
        return standardize_logits(student.logits), standardize_logits(teacher.logits)

    def select_labeled_logits(
        self, student: Outputs, teacher: Outputs, batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return both models' logits and the class numbers of the labeled images. For
        mixed labels, the class with the largest share.
        """
        ours, theirs = self.prepare_logits(student, teacher)
        target = batch.to_hard_target()
        if batch.labeled is None:
            return ours, theirs, target
        return ours[batch.labeled], theirs[batch.labeled], target[batch.labeled]


def standardize_logits(z: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """``(z - mean_c z) / (std_c z + 1e-7)`` of every image, std with K - 1: only the
    shape of the logits remains, without shift and scale.

    Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv
    2403.01427.
    """
    centered = z - z.mean(dim=1, keepdim=True)
    # The norm, unlike std, has a finite gradient for equal logits.
    std: Tensor = torch.linalg.vector_norm(centered, dim=1, keepdim=True) / math.sqrt(
        max(z.shape[1] - 1, 1)
    )
    return centered / (std + _EPSILON)
