"""Weighted transformed teacher matching: more of what the teacher is unsure about."""

from jaxtyping import Float
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.logits import LogitTerm
from kd_app.losses.ttm import Power, compute_transformed_divergence
from kd_app.models.outputs import Outputs


class WTTM(LogitTerm):
    """``mean_b U KL(q || softmax(z_s))`` with ``q = p_t^power / U`` and ``U = sum_c
    p_t,c^power``.

    U is 1 for a sure teacher and K^(1 - power) for an even one.

    Zheng & Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR
    2024, arXiv 2402.11148.
    """

    def __init__(self, *, power: Power, standardize: bool) -> None:
        super().__init__(standardize=standardize)
        self.power = power
        self.label_temperature = 1 / power

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The mean over the batch."""
        z_s, z_t = self.prepare_logits(student, teacher)
        # logsumexp twice: powers of probabilities that underflow would leave classes out
        unsure = ((self.power * z_t).logsumexp(dim=1) - self.power * z_t.logsumexp(dim=1)).exp()
        return (unsure * compute_transformed_divergence(z_s, z_t, self.power)).mean()
