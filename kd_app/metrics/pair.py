"""Metrics of a student against its teacher, or of any model against a reference."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from kd_app.metrics.scores import compute_pair_scores, compute_share


class PairTally(Metric):
    """Sums shared by all pair metrics.

    The collection updates the sums once for all metrics, and ranks add them up exactly.
    """

    is_differentiable = False
    full_state_update = False
    images: Tensor
    agree: Tensor
    worse: Tensor
    better: Tensor
    kl: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("images", "agree", "worse", "better"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("kl", torch.zeros(()), dist_reduce_fx="sum")

    def update(
        self,
        student_logits: Float[Tensor, "batch classes"],
        teacher_logits: Float[Tensor, "batch classes"],
        target: Int64[Tensor, " batch"],
    ) -> None:
        """Add a batch, which may be empty."""
        agree, student, teacher, kl = compute_pair_scores(student_logits, teacher_logits, target)
        self.images = self.images + len(target)
        self.agree = self.agree + agree.sum()
        self.worse = self.worse + (teacher & ~student).sum()
        self.better = self.better + (student & ~teacher).sum()
        self.kl = self.kl + kl.sum().to(self.kl.dtype)


class Agreement(PairTally):
    """Share of images on which the two top-1 predictions match; NaN without images."""

    higher_is_better = True

    def compute(self) -> Tensor:
        return compute_share(self.agree, self.images)


class KLToTeacher(PairTally):
    """``mean_b KL(p_teacher || p_student)`` at temperature 1, nats.

    NaN without images.
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        return compute_share(self.kl, self.images)


class NegativeFlips(PairTally):
    """Share of images that the teacher gets right and the student wrong.

    NaN without images. Yan et al., CVPR 2021, arXiv:2011.09161.
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        return compute_share(self.worse, self.images)


class PositiveFlips(PairTally):
    """Share of images that the teacher gets wrong and the student right.

    NaN without images.
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        return compute_share(self.better, self.images)


def build_pair_metrics() -> MetricCollection:
    """Build agreement, kl_to_teacher, negative_flips and positive_flips, in one pass.

    Call ``update(student_logits, teacher_logits, target)``.
    """
    parts: dict[str, type[PairTally]] = {
        "agreement": Agreement,
        "kl_to_teacher": KLToTeacher,
        "negative_flips": NegativeFlips,
        "positive_flips": PositiveFlips,
    }
    return MetricCollection(
        {name: part() for name, part in parts.items()}, compute_groups=[list(parts)]
    )
