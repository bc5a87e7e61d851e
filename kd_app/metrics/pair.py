"""The student against the teacher (or any model against the one before it), image by
image.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from kd_app.metrics.scores import compute_pair_scores, share


class PairTally(Metric):
    """The sums that all pair measures are made of; the collection updates them once for
    all, and ranks add them up exactly.
    """

    is_differentiable = False
    full_state_update = False
    seen: Tensor
    agree: Tensor
    worse: Tensor
    better: Tensor
    kl: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("seen", "agree", "worse", "better"):
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
        self.seen = self.seen + len(target)
        self.agree = self.agree + agree.sum()
        self.worse = self.worse + (teacher & ~student).sum()
        self.better = self.better + (student & ~teacher).sum()
        self.kl = self.kl + kl.sum().to(self.kl.dtype)


class Agreement(PairTally):
    """Share of images on which the two top-1 predictions match, right or wrong."""

    higher_is_better = True

    def compute(self) -> Tensor:
        """In 0..1; NaN without images."""
        return share(self.agree, self.seen)


class KLToTeacher(PairTally):
    """``mean_b KL(p_teacher || p_student)`` at temperature 1, nats."""

    higher_is_better = False

    def compute(self) -> Tensor:
        """0 or more; NaN without images."""
        return share(self.kl, self.seen)


class NegativeFlips(PairTally):
    """Share of images that the teacher has right and the student wrong (Yan et al.,
    CVPR 2021, arXiv:2011.09161).
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """In 0..1; NaN without images."""
        return share(self.worse, self.seen)


class PositiveFlips(PairTally):
    """Share of images that the teacher has wrong and the student right."""

    higher_is_better = True

    def compute(self) -> Tensor:
        """In 0..1; NaN without images."""
        return share(self.better, self.seen)


def build_pair_metrics() -> MetricCollection:
    """agreement, kl_to_teacher, negative_flips and positive_flips of
    ``update(student_logits, teacher_logits, target)``, in one pass.
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
