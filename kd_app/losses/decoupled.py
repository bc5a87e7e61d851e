"""Decoupled knowledge distillation: the target class, and the distribution of the
others.
"""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.base import TermPart
from kd_app.losses.logits import ONE_OTHER, LogitTerm
from kd_app.models.outputs import Outputs


class Decoupled(LogitTerm):
    """``T^2 mean_b [alpha KL(b_t || b_s) + beta KL(p_t || p_s)]``. b = (probability of
    the target class, of all other classes together), p = the probabilities of the other
    K-1 classes, renormalized; all from logits / T.

    The KL divergence of all K classes (`soft_target`) is the case alpha = 1, beta = 1 -
    b_t, where a confident teacher suppresses what it predicts for the other classes.
    For mixed labels [B, K] the class with the largest share is the target; rows without
    a label do not count. Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022,
    arXiv 2203.08679.
    """

    uses_labels: ClassVar[bool] = True

    def __init__(
        self,
        *,
        temperature: Annotated[float, Field(ge=0.01, le=1000)],
        alpha: NonNegativeFloat,
        beta: NonNegativeFloat,
        standardize: bool,
    ) -> None:
        super().__init__(standardize=standardize)
        self.temperature = temperature
        self.label_temperature = temperature
        self.alpha = alpha
        self.beta = beta

    def list_parts(self) -> tuple[TermPart, ...]:
        target = self.build_part("alpha")
        others = self.build_part("beta", min_classes=3, why=ONE_OTHER)
        weights = ((self.alpha, target), (self.beta, others))
        return tuple(part for weight, part in weights if weight > 0)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean over the labeled images; 0 if both models predict the same
        probabilities, or no image is labeled.
        """
        z_s, z_t, target = self.select_labeled_logits(student, teacher, batch)
        binary_s, others_s = split_target_class(z_s / self.temperature, target)
        binary_t, others_t = split_target_class(z_t / self.temperature, target)
        target_class = F.kl_div(binary_s, binary_t, reduction="sum", log_target=True)
        other_classes = F.kl_div(others_s, others_t, reduction="sum", log_target=True)
        return (self.alpha * target_class + self.beta * other_classes) * (
            self.temperature**2 / max(len(target), 1)
        )


def split_target_class(
    z: Float[Tensor, "batch classes"], target: Int64[Tensor, " batch"]
) -> tuple[Float[Tensor, "batch 2"], Float[Tensor, "batch classes"]]:
    """Return log-probabilities of (target, not target), and of every other class given
    that the class is not the target (0 at the target itself).
    """
    at = target[:, None]
    all_others = z.scatter(1, at, -torch.inf).logsumexp(dim=1, keepdim=True)
    odds = z.gather(1, at) - all_others
    return F.logsigmoid(torch.cat((odds, -odds), dim=1)), (z - all_others).scatter(1, at, 0.0)
