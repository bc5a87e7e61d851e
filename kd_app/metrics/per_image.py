"""From logits in memory to a few numbers an image, or to metrics of all, a block at a
time (50,000 x 1,000 logits are 200 MB; no copy of that size is made).
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kd_app.metrics.classification import BINS, assign_calibration_bins, build_model_metrics
from kd_app.metrics.pair import build_pair_metrics
from kd_app.metrics.per_class import compute_f1_by_class
from kd_app.metrics.record import Predictions, Scores, SoftLabelScores, Totals
from kd_app.metrics.scores import compute_pair_scores, compute_squared_errors, to_float32
from kd_app.metrics.scores import compute_scores as score_batch
from kd_app.metrics.soft_labels import rank_correlations, reverse_divergences

_VALUES = 2**23


def iterate_blocks(*arrays: np.ndarray) -> Iterator[tuple[Tensor, ...]]:
    """The rows of arrays of equal length as tensors, a few million values at a time;
    memory-mapped and read-only arrays are fine.
    """
    rows = max(1, _VALUES // max(1, arrays[0][:1].size))
    for start in range(0, len(arrays[0]), rows):
        yield tuple(torch.from_numpy(np.array(array[start : start + rows])) for array in arrays)


def score_images(
    logits: Float[np.ndarray, "images classes"], target: Int64[np.ndarray, " images"]
) -> Scores:
    """What each image contributes to the metrics of one model."""
    parts, brier, predicted = [], [], []
    for block, label in iterate_blocks(logits, target):
        parts.append(score_batch(block, label))
        brier.append(compute_squared_errors(to_float32(block).softmax(dim=1), label))
        predicted.append(block.argmax(dim=1))
    return Scores(
        torch.cat([part.rank for part in parts]).numpy(),
        torch.cat([part.nll for part in parts]).double().numpy(),
        torch.cat([part.confidence for part in parts]).double().numpy(),
        torch.cat(brier).double().numpy(),
        torch.cat(predicted).numpy(),
    )


def sum_up(
    logits: Float[np.ndarray, "images classes"],
    target: Int64[np.ndarray, " images"],
    scores: Scores,
) -> Totals:
    """The metrics of one model over all images; no array of all probabilities is made."""
    n, classes = len(target), logits.shape[1]
    logged = build_model_metrics(classes)
    squares, excess = torch.zeros(()), torch.zeros(classes, BINS)
    for block, label in iterate_blocks(logits, target):
        logged.update(block, label)
        p = to_float32(block).softmax(dim=1)
        squares = squares + compute_squared_errors(p, label).sum().float()
        excess = excess + sum_class_excess(p, label).float()
    f1 = compute_f1_by_class(scores.rank == 0, scores.predicted, target, classes)
    known = {name: float(value) for name, value in logged.compute().items()}
    return Totals(
        balanced_accuracy=known["balanced_accuracy"],
        f1=float(torch.from_numpy(f1).nanmean()),
        nll=known["nll"],
        brier=float(squares.double() / n),
        ece=known["ece"],
        classwise_ece=float((excess.abs().sum(dim=1).double() / n).mean()),
    )


def compare_soft_labels(student: Predictions, teacher: Predictions) -> SoftLabelScores:
    """How the probabilities of two models compare, on each image."""
    logged = build_pair_metrics()
    kl, reverse, rho = [], [], []
    for ours, theirs, label in iterate_blocks(student.logits, teacher.logits, student.target):
        logged.update(ours, theirs, label)
        kl.append(compute_pair_scores(ours, theirs, label).kl)
        reverse.append(reverse_divergences(ours, theirs))
        rho.append(rank_correlations(ours, theirs))
    columns = (torch.cat(each).double().numpy() for each in (kl, reverse, rho))
    return SoftLabelScores(float(logged.compute()["kl_to_teacher"]), *columns)


def sum_class_excess(
    p: Float[Tensor, "batch classes"], target: Int64[Tensor, " batch"]
) -> Float[Tensor, "classes bins"]:
    """Of each class and each bin of its probability, the sum over the bin's images of
    that probability minus [it is the label].
    """
    classes = p.shape[1]
    label = p.gather(1, target[:, None])[:, 0]
    place = assign_calibration_bins(p) + BINS * torch.arange(classes, device=p.device)
    sums = torch.zeros(classes * BINS, device=p.device, dtype=p.dtype).index_add(
        0, place.flatten(), p.flatten()
    )
    hit = assign_calibration_bins(label) + BINS * target
    return sums.index_add(0, hit, -torch.ones_like(label)).view(classes, BINS)
