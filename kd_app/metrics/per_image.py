"""Per-image values and totals from logits in memory, computed a block at a time.

50,000 x 1,000 logits take 200 MB; blocks avoid a copy of that size.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kd_app.metrics.blocks import slice_rows
from kd_app.metrics.classification import BINS, assign_calibration_bins, build_model_metrics
from kd_app.metrics.pair import build_pair_metrics
from kd_app.metrics.per_class import compute_f1_by_class
from kd_app.metrics.record import ImageScores, Predictions, SoftLabelScores, Totals
from kd_app.metrics.scores import compute_pair_scores, compute_squared_errors, to_float32
from kd_app.metrics.scores import compute_scores as score_batch
from kd_app.metrics.soft_labels import compute_rank_correlations, compute_reverse_divergences

_VALUES = 2**23
"""Values per block."""


def iterate_blocks(*arrays: np.ndarray) -> Iterator[tuple[Tensor, ...]]:
    """Yield the rows of arrays of equal length as tensors, a block at a time.

    The arrays may be memory-mapped or read-only.
    """
    for rows in slice_rows(arrays[0], _VALUES):
        yield tuple(torch.from_numpy(np.array(array[rows])) for array in arrays)


def score_images(
    logits: Float[np.ndarray, "images classes"], target: Int64[np.ndarray, " images"]
) -> ImageScores:
    """Compute the terms that each image adds to the metrics of one model."""
    parts, brier, predicted = [], [], []
    for block, label in iterate_blocks(logits, target):
        parts.append(score_batch(block, label))
        brier.append(compute_squared_errors(to_float32(block).softmax(dim=1), label))
        predicted.append(block.argmax(dim=1))
    return ImageScores(
        torch.cat([part.rank for part in parts]).numpy(),
        torch.cat([part.nll for part in parts]).double().numpy(),
        torch.cat([part.confidence for part in parts]).double().numpy(),
        torch.cat(brier).double().numpy(),
        torch.cat(predicted).numpy(),
    )


def compute_totals(
    logits: Float[np.ndarray, "images classes"],
    target: Int64[np.ndarray, " images"],
    scores: ImageScores,
) -> Totals:
    """Compute the metrics of one model over all images, a block at a time."""
    n, classes = len(target), logits.shape[1]
    metrics = build_model_metrics(classes)
    squares, excess = torch.zeros(()), torch.zeros(classes, BINS)
    for block, label in iterate_blocks(logits, target):
        metrics.update(block, label)
        p = to_float32(block).softmax(dim=1)
        squares = squares + compute_squared_errors(p, label).sum().float()
        excess = excess + sum_class_excess(p, label).float()
    f1 = compute_f1_by_class(scores.rank == 0, scores.predicted, target, classes)
    values = {name: float(value) for name, value in metrics.compute().items()}
    return Totals(
        balanced_accuracy=values["balanced_accuracy"],
        f1=float(torch.from_numpy(f1).nanmean()),
        nll=values["nll"],
        brier=float(squares.double() / n),
        ece=values["ece"],
        classwise_ece=float((excess.abs().sum(dim=1).double() / n).mean()),
    )


def compare_soft_labels(student: Predictions, teacher: Predictions) -> SoftLabelScores:
    """Compare the probabilities of two models on each image."""
    metrics = build_pair_metrics()
    kl, reverse, rho = [], [], []
    for s, t, label in iterate_blocks(student.logits, teacher.logits, student.target):
        metrics.update(s, t, label)
        kl.append(compute_pair_scores(s, t, label).kl)
        reverse.append(compute_reverse_divergences(s, t))
        rho.append(compute_rank_correlations(s, t))
    columns = (torch.cat(each).double().numpy() for each in (kl, reverse, rho))
    return SoftLabelScores(float(metrics.compute()["kl_to_teacher"]), *columns)


def sum_class_excess(
    p: Float[Tensor, "batch classes"], target: Int64[Tensor, " batch"]
) -> Float[Tensor, "classes bins"]:
    """Sum ``p_ik - [k is i's label]`` over the images i, by class k and bin of p_ik."""
    classes = p.shape[1]
    label = p.gather(1, target[:, None])[:, 0]
    bins = assign_calibration_bins(p) + BINS * torch.arange(classes, device=p.device)
    sums = torch.zeros(classes * BINS, device=p.device, dtype=p.dtype).index_add(
        0, bins.flatten(), p.flatten()
    )
    hit = assign_calibration_bins(label) + BINS * target
    return sums.index_add(0, hit, -torch.ones_like(label)).view(classes, BINS)
