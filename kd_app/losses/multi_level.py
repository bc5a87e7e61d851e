"""Multi-level logit distillation: images, relations of images and relations of classes,
at several temperatures.
"""

from typing import Annotated

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.base import TermPart
from kd_app.losses.logits import LogitTerm
from kd_app.models.outputs import Outputs


class MultiLevel(LogitTerm):
    """``sum_T [T^2 mean_b (1 + u_b) KL_b + |u (Q Q' - P P')|^2 / B + |v (Q' Q - P'
    P)|^2 / K]`` for P, Q [B, K] = softmax(z / T) of student, teacher.

    u_b is 1 for images on which the teacher's confidence is at most the batch median,
    and 0 otherwise; v_c is 1 for classes whose total probability is at most the median
    of the classes, and 0 otherwise. Both mask rows of the matrices. Standardized logits
    are used in the first part only. Jin, Wang, Lin, "Multi-Level Logit Distillation",
    CVPR 2023, as in the paper, for one view of an image. The authors' code differs: it
    multiplies whole parts with the *share* of such images and classes, uses the weak
    view in parts of the strong one, and drops two sums.
    """

    needs_global_batch: bool = True

    def __init__(
        self,
        *,
        temperatures: Annotated[
            list[Annotated[float, Field(ge=0.01, le=1000)]], Field(min_length=1)
        ],
        standardize: bool,
    ) -> None:
        super().__init__(standardize=standardize)
        self.temperatures = temperatures

    def list_parts(self) -> tuple[TermPart, ...]:
        return (self.build_part("the divergence"), TermPart("relations", min_classes=2))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the sum over the temperatures; 0 if both models predict the same
        probabilities.
        """
        assert student.logits is not None
        assert teacher.logits is not None
        probabilities = F.softmax(teacher.logits, dim=1)
        images, classes = (
            _flag_unsure(probabilities.amax(dim=1)),
            _flag_unsure(probabilities.sum(dim=0)),
        )
        z_s, z_t = self.prepare_logits(student, teacher)
        total = z_s.new_zeros(())
        for temperature in self.temperatures:
            p, q = (F.softmax(z / temperature, dim=1) for z in (student.logits, teacher.logits))
            ours, theirs = (F.log_softmax(z / temperature, dim=1) for z in (z_s, z_t))
            each = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)
            total = (
                total
                + temperature**2 * ((1 + images) * each).mean()
                + compare_relations(p, q, images)
                + compare_relations(p.T, q.T, classes)
            )
        return total


def compare_relations(
    p: Float[Tensor, "rows columns"], q: Float[Tensor, "rows columns"], rows: Float[Tensor, " rows"]
) -> Float[Tensor, ""]:
    """``|rows (q q' - p p')|^2 / number of rows``: compare the similarities of rows,
    for the rows marked 1.
    """
    return (rows[:, None] * (q @ q.T - p @ p.T).square()).sum() / len(p)


def _flag_unsure(x: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Return 1 for values that are at most the median (mean of the two middle values),
    else 0.
    """
    return (x <= x.quantile(0.5)).to(x.dtype)
