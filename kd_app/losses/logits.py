"""What the terms on logits share: the logits as the term is to see them."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm
from kd_app.models.outputs import Outputs

_EPSILON = 1e-7


class LogitTerm(LossTerm):
    """A term on the logits of both models, which are standardized first where
    `standardize` says so.
    """

    level: ClassVar[Level] = "output"

    def __init__(self, *, standardize: bool) -> None:
        super().__init__()
        self.standardize = standardize

    def prepare_logits(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """Both models' logits [B, K]."""
        assert student.logits is not None
        assert teacher.logits is not None
        return (
            (standardize_logits(student.logits), standardize_logits(teacher.logits))
            if self.standardize
            else (student.logits, teacher.logits)
        )

    def select_labeled_logits(
        self, student: Outputs, teacher: Outputs, batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both models' logits and the class numbers of the images that have a label; of
        mixed labels the class with the largest share.
        """
        ours, theirs = self.prepare_logits(student, teacher)
        target = batch.to_hard_target()
        return (
            (ours, theirs, target)
            if batch.labeled is None
            else (ours[batch.labeled], theirs[batch.labeled], target[batch.labeled])
        )


def standardize_logits(z: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """``(z - mean_c z) / (std_c z + 1e-7)`` of every image, std with K - 1: only the
    shape of the logits is left, neither shift nor size.

    Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv
    2403.01427.
    """
    centered = z - z.mean(dim=1, keepdim=True)
    # the norm, unlike std, has a gradient where all logits are the same
    std: Tensor = torch.linalg.vector_norm(centered, dim=1, keepdim=True) / math.sqrt(
        max(z.shape[1] - 1, 1)
    )
    return centered / (std + _EPSILON)
