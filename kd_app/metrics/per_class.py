"""What an average hides: figures of each class, and those of a model that look at all
of its probabilities.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from kd_app.metrics.classification import BINS, calibration_bins
from kd_app.metrics.scores import ranks, share, squared_errors, widen


class ClassTally(Metric):
    """The sums that the measures below are made of: K numbers each, and K x 15 for the
    calibration. Ranks add them up exactly.
    """

    is_differentiable = False
    full_state_update = False
    seen: Tensor
    hits: Tensor
    predicted: Tensor
    squares: Tensor
    excess: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for name in ("seen", "hits", "predicted"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("squares", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("excess", torch.zeros(num_classes, BINS), dist_reduce_fx="sum")

    def update(
        self, logits: Float[Tensor, "batch classes"], target: Int64[Tensor, " batch"]
    ) -> None:
        """Add a batch, which may be empty."""
        p = widen(logits).softmax(dim=1)
        one = torch.ones_like(target)
        self.seen = self.seen.index_add(0, target, one)
        self.hits = self.hits.index_add(0, target, (ranks(logits, target) == 0).long())
        self.predicted = self.predicted.index_add(0, logits.argmax(dim=1), one)
        self.squares = self.squares + squared_errors(p, target).sum().to(self.squares.dtype)
        self.excess = self.excess + class_excess(p, target).to(self.excess.dtype)

    def recall(self) -> Tensor:
        """``[K]``: share of each class that is right; NaN for a class without images."""
        return share(self.hits, self.seen)

    def f1(self) -> Tensor:
        """``[K]``: ``2 hits / (images + predictions)`` of each class; NaN for a class
        without images.
        """
        return share(2 * self.hits, self.seen + self.predicted).where(self.seen > 0, torch.nan)


def class_excess(
    p: Float[Tensor, "batch classes"], target: Int64[Tensor, " batch"]
) -> Float[Tensor, "classes bins"]:
    """Of each class and each bin of its probability, the sum over the bin's images of
    that probability minus [it is the label].
    """
    classes = p.shape[1]
    label = p.gather(1, target[:, None])[:, 0]
    place = calibration_bins(p) + BINS * torch.arange(classes, device=p.device)
    sums = torch.zeros(classes * BINS, device=p.device, dtype=p.dtype).index_add(
        0, place.flatten(), p.flatten()
    )
    hit = calibration_bins(label) + BINS * target
    return sums.index_add(0, hit, -torch.ones_like(label)).view(classes, BINS)


class Brier(ClassTally):
    """``mean_b sum_k (p_k - [k is the label])^2``: 0 at best, 2 at worst (G. W. Brier,
    Monthly Weather Review 1950).
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """In 0..2; NaN without images."""
        return share(self.squares, self.seen.sum())


class ClasswiseCalibrationError(ClassTally):
    """``mean_k sum_b |sum_{i in bin b of class k} (p_ik - [k is i's label])| / N`` over
    15 bins of equal width, of all K classes.

    Kull, Perello-Nieto, Kangsepp, Silva Filho, Song, Flach, 'Beyond temperature
    scaling', NeurIPS 2019, arXiv:1910.12656.
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """In 0..1; NaN without images."""
        return share(self.excess.abs().sum(dim=1), self.seen.sum()).mean()


class MacroF1(ClassTally):
    """Mean over the classes that have images of ``2 hits / (images + predictions)``."""

    higher_is_better = True

    def compute(self) -> Tensor:
        """In 0..1; NaN without images."""
        return self.f1().nanmean()


class ClassAccuracy(ClassTally):
    """Share of each class's images that is right: its recall."""

    higher_is_better = True

    def compute(self) -> Tensor:
        """``[K]`` in 0..1; NaN for a class without images."""
        return self.recall()


class ClassF1(ClassTally):
    """``2 hits / (images + predictions)`` of each class."""

    higher_is_better = True

    def compute(self) -> Tensor:
        """``[K]`` in 0..1; NaN for a class without images."""
        return self.f1()


class Support(ClassTally):
    """Number of images of each class."""

    def compute(self) -> Tensor:
        """``[K]`` int64."""
        return self.seen


def class_measures(num_classes: int) -> MetricCollection:
    """brier, classwise_ece and f1 (numbers), class_accuracy, class_f1 and support
    (``[K]``) of ``update(logits [B, K], target [B])``, in one pass.
    """
    parts: dict[str, type[ClassTally]] = {
        "brier": Brier,
        "classwise_ece": ClasswiseCalibrationError,
        "f1": MacroF1,
        "class_accuracy": ClassAccuracy,
        "class_f1": ClassF1,
        "support": Support,
    }
    return MetricCollection(
        {name: part(num_classes) for name, part in parts.items()}, compute_groups=[list(parts)]
    )


class Confusion(Metric):
    """How often images of each class (row) were taken for each class (column). Holds K
    x K counts.
    """

    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state(
            "counts", torch.zeros(num_classes**2, dtype=torch.int64), dist_reduce_fx="sum"
        )

    def update(self, predicted: Int64[Tensor, " batch"], target: Int64[Tensor, " batch"]) -> None:
        """Add the top-1 classes of a batch, which may be empty."""
        self.counts = self.counts.index_add(
            0, self.num_classes * target + predicted, torch.ones_like(target)
        )

    def compute(self) -> Int64[Tensor, "classes classes"]:
        """``[K, K]``: row is the label, column what was predicted."""
        return self.counts.view(self.num_classes, self.num_classes)


class FlipTally(Metric):
    """Images, negative and positive flips of each class; ranks add them up exactly."""

    is_differentiable = False
    full_state_update = False
    seen: Tensor
    worse: Tensor
    better: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for name in ("seen", "worse", "better"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        student_logits: Float[Tensor, "batch classes"],
        teacher_logits: Float[Tensor, "batch classes"],
        target: Int64[Tensor, " batch"],
    ) -> None:
        """Add a batch, which may be empty."""
        student, teacher = (
            ranks(logits, target) == 0 for logits in (student_logits, teacher_logits)
        )
        self.seen = self.seen.index_add(0, target, torch.ones_like(target))
        self.worse = self.worse.index_add(0, target, (teacher & ~student).long())
        self.better = self.better.index_add(0, target, (student & ~teacher).long())


class ClassNegativeFlips(FlipTally):
    """Share of each class's images that the teacher has right and the student wrong."""

    higher_is_better = False

    def compute(self) -> Tensor:
        """``[K]`` in 0..1; NaN for a class without images."""
        return share(self.worse, self.seen)


class ClassPositiveFlips(FlipTally):
    """Share of each class's images that the teacher has wrong and the student right."""

    higher_is_better = True

    def compute(self) -> Tensor:
        """``[K]`` in 0..1; NaN for a class without images."""
        return share(self.better, self.seen)


def class_flips(num_classes: int) -> MetricCollection:
    """negative_flips and positive_flips, ``[K]`` each, of ``update(student_logits,
    teacher_logits, target)``, in one pass.
    """
    parts: dict[str, type[FlipTally]] = {
        "negative_flips": ClassNegativeFlips,
        "positive_flips": ClassPositiveFlips,
    }
    return MetricCollection(
        {name: part(num_classes) for name, part in parts.items()}, compute_groups=[list(parts)]
    )
