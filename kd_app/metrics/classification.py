"""One model against the labels: top-1, top-5, balanced accuracy, negative
log-likelihood, calibration error.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from kd_app.metrics.scores import compute_scores, share

BINS = 15


def assign_calibration_bins(p: Float[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """Number of the bin ``(b / 15, (b + 1) / 15]`` that holds each probability; 0 lies
    in the first, NaN in the last.
    """
    return torch.bucketize(p, torch.linspace(0, 1, BINS + 1, device=p.device, dtype=p.dtype)[1:-1])


class Tally(Metric):
    """The sums that all five measures are made of: the collection updates them once for
    all, and ranks add them up exactly.

    Unlike torchmetrics' own classes it takes empty batches, builds no K x K matrix,
    keeps no list of images, and never mistakes logits that lie in 0..1 for
    probabilities.
    """

    is_differentiable = False
    full_state_update = False
    seen: Tensor
    hits: Tensor
    near_hits: Tensor
    nll: Tensor
    excess: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_near = min(5, num_classes)
        self.add_state("seen", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("hits", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("near_hits", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("nll", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("excess", torch.zeros(BINS), dist_reduce_fx="sum")

    def update(
        self, logits: Float[Tensor, "batch classes"], target: Int64[Tensor, " batch"]
    ) -> None:
        """Add a batch, which may be empty."""
        rank, nll, confidence = compute_scores(logits, target)
        hit = rank == 0
        self.seen = self.seen.index_add(0, target, torch.ones_like(target))
        self.hits = self.hits.index_add(0, target, hit.long())
        self.near_hits = self.near_hits + (rank < self.num_near).sum()
        self.nll = self.nll + nll.sum().to(self.nll.dtype)
        self.excess = self.excess.index_add(
            0,
            assign_calibration_bins(confidence),
            (confidence - hit.to(confidence.dtype)).to(self.excess.dtype),
        )

    def count(self) -> Tensor:
        """Number of images seen."""
        return self.seen.sum()


class Top1(Tally):
    """Share of images whose label has the largest logit."""

    higher_is_better = True

    def compute(self) -> Tensor:
        """In 0..1; NaN without images."""
        return share(self.hits.sum(), self.count())


class Top5(Tally):
    """Share of images whose label is among the ``min(5, K)`` largest logits."""

    higher_is_better = True

    def compute(self) -> Tensor:
        """In 0..1; NaN without images."""
        return share(self.near_hits, self.count())


class BalancedAccuracy(Tally):
    """Mean over the classes that have images of the share of them that is right
    (Brodersen et al., ICPR 2010).
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        """In 0..1; NaN without images."""
        return share(self.hits, self.seen).nanmean()


class NegativeLogLikelihood(Tally):
    """``mean_b -log p(label)``, nats."""

    higher_is_better = False

    def compute(self) -> Tensor:
        """0 or more; NaN without images."""
        return share(self.nll, self.count())


class CalibrationError(Tally):
    """``ECE = sum_b |sum_{i in bin b} (confidence_i - hit_i)| / N`` over 15 bins of
    equal width.

    Guo, Pleiss, Sun, Weinberger, 'On Calibration of Modern Neural Networks', ICML 2017,
    arXiv:1706.04599.
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """In 0..1; NaN without images."""
        return share(self.excess.abs().sum(), self.count())


def build_model_metrics(num_classes: int) -> MetricCollection:
    """top1, top5, balanced_accuracy, nll and ece of ``update(logits [B, K], target
    [B])``, computed in one pass.

    Exact under any number of ranks (sums only); ``persistent(True)`` makes a
    half-finished epoch survive in a checkpoint.
    """
    parts: dict[str, type[Tally]] = {
        "top1": Top1,
        "top5": Top5,
        "balanced_accuracy": BalancedAccuracy,
        "nll": NegativeLogLikelihood,
        "ece": CalibrationError,
    }
    return MetricCollection(
        {name: part(num_classes) for name, part in parts.items()}, compute_groups=[list(parts)]
    )
