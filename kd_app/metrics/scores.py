"""Per-image values that the metrics sum, for one model or a pair of models."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional


class BatchScores(NamedTuple):
    """Values of one model for each image of a batch.

    rank: number of classes ranked before the label (0: top-1 is right) · nll: ``-log
    p(label)``, nats · confidence: the largest probability.
    """

    rank: Int64[Tensor, " batch"]
    nll: Float[Tensor, " batch"]
    confidence: Float[Tensor, " batch"]


class PairScores(NamedTuple):
    """Values of a pair of models for each image of a batch.

    agree: same top-1 class · student, teacher: top-1 is right · kl: ``KL(p_teacher ||
    p_student)`` at temperature 1, nats.
    """

    agree: Bool[Tensor, " batch"]
    student: Bool[Tensor, " batch"]
    teacher: Bool[Tensor, " batch"]
    kl: Float[Tensor, " batch"]


def to_float32(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """Convert half-precision logits to float32."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def compute_ranks(
    logits: Float[Tensor, "batch classes"], target: Int64[Tensor, " batch"]
) -> Int64[Tensor, " batch"]:
    """Number of classes ranked before the label.

    Equal logits rank in the order of their class numbers (as in argmax), NaN logits
    before everything. Hence top-1 hits are top-5 hits, a network with constant logits
    is right on class 0 only, and a network with NaN logits is never right.
    """
    label = logits.gather(1, target[:, None])
    later = torch.arange(logits.shape[1], device=logits.device) >= target[:, None]
    behind = (logits < label) | ((logits == label) & later)
    return behind.logical_not_().sum(dim=1)


def compute_scores(
    logits: Float[Tensor, "batch classes"], target: Int64[Tensor, " batch"]
) -> BatchScores:
    """Rank of the label, negative log-likelihood and confidence for each image."""
    logits = to_float32(logits)
    log_p = logits.log_softmax(dim=1)
    return BatchScores(
        compute_ranks(logits, target),
        -log_p.gather(1, target[:, None])[:, 0],
        log_p.amax(dim=1).exp(),
    )


def compute_squared_errors(
    p: Float[Tensor, "batch classes"], target: Int64[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """``sum_k (p_k - [k is the label])^2`` of each image."""
    others = p.scatter(1, target[:, None], 0.0)
    return others.square().sum(dim=1) + others.sum(dim=1).square()


def compute_pair_scores(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    target: Int64[Tensor, " batch"],
) -> PairScores:
    """Compare the predictions of student and teacher on each image."""
    student, teacher = to_float32(student), to_float32(teacher)
    kl = functional.kl_div(
        student.log_softmax(dim=1), teacher.softmax(dim=1).to(student.dtype), reduction="none"
    )
    return PairScores(
        student.argmax(1) == teacher.argmax(1),
        compute_ranks(student, target) == 0,
        compute_ranks(teacher, target) == 0,
        kl.sum(dim=1).clamp(min=0),
    )


def compute_share(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole`` in float64 (in float32 on MPS); NaN if `whole` is 0."""
    dtype = torch.float32 if part.device.type == "mps" else torch.float64
    return part.to(dtype) / whole.to(dtype)
