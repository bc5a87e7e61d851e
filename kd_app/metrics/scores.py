"""What each image says about one model, or about two: everything the measures sum up."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional


class Scores(NamedTuple):
    """rank: number of classes that come before the label (0: top-1 is right) · nll:
    ``-log p(label)``, nats · confidence: the largest probability.
    """

    rank: Int64[Tensor, " batch"]
    nll: Float[Tensor, " batch"]
    confidence: Float[Tensor, " batch"]


class PairScores(NamedTuple):
    """agree: same top-1 class · student, teacher: top-1 is right · kl: ``KL(p_teacher
    || p_student)`` at temperature 1, nats.
    """

    agree: Bool[Tensor, " batch"]
    student: Bool[Tensor, " batch"]
    teacher: Bool[Tensor, " batch"]
    kl: Float[Tensor, " batch"]


def to_float32(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """The same logits in float32 or better."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def compute_ranks(
    logits: Float[Tensor, "batch classes"], target: Int64[Tensor, " batch"]
) -> Int64[Tensor, " batch"]:
    """Classes before the label; equal logits in the order of their class numbers (as
    argmax has it), NaN before everything.

    So top-1 and top-5 are nested, a net of constant logits is right on class 0 alone,
    and one of NaN logits never.
    """
    label = logits.gather(1, target[:, None])
    later = torch.arange(logits.shape[1], device=logits.device) >= target[:, None]
    behind = (logits < label) | ((logits == label) & later)
    return behind.logical_not_().sum(dim=1)


def compute_scores(
    logits: Float[Tensor, "batch classes"], target: Int64[Tensor, " batch"]
) -> Scores:
    """Rank of the label, negative log-likelihood and confidence of each image."""
    logits = to_float32(logits)
    log_p = logits.log_softmax(dim=1)
    return Scores(
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
    """How the student's answer to each image compares with the teacher's."""
    student, teacher = to_float32(student), to_float32(teacher)
    kl = (
        functional.kl_div(
            student.log_softmax(dim=1), teacher.softmax(dim=1).to(student.dtype), reduction="none"
        )
        .sum(dim=1)
        .clamp(min=0)
    )
    return PairScores(
        student.argmax(1) == teacher.argmax(1),
        compute_ranks(student, target) == 0,
        compute_ranks(teacher, target) == 0,
        kl,
    )


def share(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole`` in float64 (float32 where the device has no better); NaN when
    nothing was counted.
    """
    kind = torch.float32 if part.device.type == "mps" else torch.float64
    return part.to(kind) / whole.to(kind)
