"""Normalized knowledge distillation: the target class, and the renormalized others."""

from typing import Annotated, ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.base import TermPart
from kd_app.losses.decoupled import split_target_class
from kd_app.losses.logits import ONE_OTHER, LogitTerm
from kd_app.models.outputs import Outputs


class NKD(LogitTerm):
    """``-mean_b [p_t(y) log p_s(y) + gamma T^2 sum_{c != y} q_t,c log q_s,c]``: p at
    temperature 1, q = softmax of z / T over the K-1 other classes.

    These are cross-entropies, not divergences: the value is not 0 if student and
    teacher agree. For mixed labels [B, K] the class with the largest share is the
    target; rows without a label do not count. Yang et al., "From Knowledge Distillation
    to Self-Knowledge Distillation", ICCV 2023, arXiv 2303.13005.
    """

    uses_labels: ClassVar[bool] = True

    def __init__(
        self,
        *,
        temperature: Annotated[float, Field(ge=0.01, le=1000)],
        gamma: NonNegativeFloat,
        standardize: bool,
    ) -> None:
        super().__init__(standardize=standardize)
        self.temperature = temperature
        self.label_temperature = temperature
        self.gamma = gamma

    @property
    def teacher_temperature(self) -> float | None:
        # the target class is compared at temperature 1
        return super().teacher_temperature if self.temperature == 1 else None

    def list_parts(self) -> tuple[TermPart, ...]:
        target = self.build_part("the target class")
        others = self.build_part("gamma", min_classes=3, why=ONE_OTHER)
        return (target, others) if self.gamma > 0 else (target,)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean over the labeled images; 0 if no image is labeled."""
        z_s, z_t, target = self.select_labeled_logits(student, teacher, batch)
        log_s, log_t = (F.log_softmax(z, dim=1).gather(1, target[:, None]) for z in (z_s, z_t))
        (_, others_s), (_, others_t) = (
            split_target_class(z / self.temperature, target) for z in (z_s, z_t)
        )
        # Zero at the target class: the sum over all classes is that over the others.
        others = (others_t.exp() * others_s).sum()
        return -((log_t.exp() * log_s).sum() + self.gamma * self.temperature**2 * others) / max(
            len(target), 1
        )
