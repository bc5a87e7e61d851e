"""Metrics of one model against the labels.

Top-1, top-5, balanced accuracy, negative log-likelihood and calibration error.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from kd_app.metrics.scores import compute_scores, compute_share

BINS = 15


def assign_calibration_bins(p: Float[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """Index of the bin ``(b / 15, (b + 1) / 15]`` that holds each probability.

    The first bin includes 0; NaN falls into the last one.
    """
    return torch.bucketize(p, torch.linspace(0, 1, BINS + 1, device=p.device, dtype=p.dtype)[1:-1])


class Tally(Metric):
    """Sums shared by all five metrics.

    The collection updates the sums once for all metrics, and ranks add them up exactly.
    Unlike torchmetrics' own classes, this class accepts empty batches, builds no K x K
    matrix, stores no list of images, and never mistakes logits within 0..1 for
    probabilities.
    """

    is_differentiable = False
    full_state_update = False
    images: Tensor
    hits: Tensor
    near_hits: Tensor
    nll: Tensor
    excess: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_near = min(5, num_classes)
        self.add_state("images", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
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
        self.images = self.images.index_add(0, target, torch.ones_like(target))
        self.hits = self.hits.index_add(0, target, hit.long())
        self.near_hits = self.near_hits + (rank < self.num_near).sum()
        self.nll = self.nll + nll.sum().to(self.nll.dtype)
        excess = (confidence - hit.to(confidence.dtype)).to(self.excess.dtype)
        self.excess = self.excess.index_add(0, assign_calibration_bins(confidence), excess)

    def count(self) -> Tensor:
        """Number of images so far."""
        return self.images.sum()


class Top1(Tally):
    """Share of images whose label has the largest logit; NaN without images."""

    higher_is_better = True

    def compute(self) -> Tensor:
        return compute_share(self.hits.sum(), self.count())


class Top5(Tally):
    """Share of images whose label is among the ``min(5, K)`` largest logits.

    NaN without images.
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        return compute_share(self.near_hits, self.count())


class BalancedAccuracy(Tally):
    """Mean recall over the classes that have images; NaN without images.

    Brodersen et al., ICPR 2010.
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        return compute_share(self.hits, self.images).nanmean()


class NegativeLogLikelihood(Tally):
    """``mean_b -log p(label)``, nats; NaN without images."""

    higher_is_better = False

    def compute(self) -> Tensor:
        return compute_share(self.nll, self.count())


class CalibrationError(Tally):
    """``ECE = sum_b |sum_{i in bin b} (confidence_i - hit_i)| / N``.

    15 bins of equal width; NaN without images. Guo, Pleiss, Sun, Weinberger, 'On
    Calibration of Modern Neural Networks', ICML 2017, arXiv:1706.04599.
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        return compute_share(self.excess.abs().sum(), self.count())


def build_model_metrics(num_classes: int) -> MetricCollection:
    """Build top1, top5, balanced_accuracy, nll and ece, computed in one pass.

    Call ``update(logits [B, K], target [B])``. The metrics are exact under any number
    of ranks (sums only). After ``persistent(True)``, a checkpoint includes a
    half-finished epoch.
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
