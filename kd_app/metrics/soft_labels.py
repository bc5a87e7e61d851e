"""What the student says of all classes beside what the teacher says of them."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from kd_app.metrics.scores import to_float32


def average_ranks(scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """Rank of each class among its image's, from 1 (the smallest) to K; equal scores
    share the mean of their ranks.
    """
    ordered, order = scores.sort(dim=1)
    place = (
        torch.arange(1, scores.shape[1] + 1, device=scores.device, dtype=scores.dtype)
        .expand_as(scores)
        .contiguous()
    )
    starts = functional.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0), value=True)
    tied = ~starts.all(dim=1)
    place[tied] = _share_ranks(place[tied], starts[tied])
    return torch.empty_like(scores).scatter_(1, order, place)


def _share_ranks(
    place: Float[Tensor, "batch classes"], starts: Bool[Tensor, "batch classes"]
) -> Float[Tensor, "batch classes"]:
    """Ranks in ascending order, where those of a run of equal scores, which begins at
    each of `starts`, become their mean.
    """
    first = place.where(starts, 0).cummax(dim=1).values
    ends = functional.pad(starts[:, 1:], (0, 1), value=True)
    last = place.where(ends, torch.inf).flip(1).cummin(dim=1).values.flip(1)
    return (first + last) / 2


def rank_correlations(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]
) -> Float[Tensor, " batch"]:
    """Spearman's rho between the two models' class scores on each image, -1..1 (C.
    Spearman, American Journal of Psychology 1904).

    Pearson's correlation of `average_ranks`: logits and probabilities give the same.
    With two classes it is +1 or -1, for whether both models prefer the same one. NaN
    where one model scores all classes alike, or has a NaN.
    """
    student, teacher = to_float32(student), to_float32(teacher)
    unknown = student.isnan().any(dim=1) | teacher.isnan().any(dim=1)
    middle = (student.shape[1] + 1) / 2
    one, other = average_ranks(student) - middle, average_ranks(teacher) - middle
    rho = (one * other).sum(dim=1) / (one.square().sum(dim=1) * other.square().sum(dim=1)).sqrt()
    return rho.clamp(-1, 1).masked_fill(unknown, torch.nan)


def reverse_divergences(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]
) -> Float[Tensor, " batch"]:
    """``KL(p_student || p_teacher)`` of each image at temperature 1, nats: large where
    the student is sure of what the teacher thinks unlikely.
    """
    student, teacher = to_float32(student), to_float32(teacher)
    kl = functional.kl_div(
        teacher.log_softmax(dim=1), student.softmax(dim=1).to(teacher.dtype), reduction="none"
    )
    return kl.sum(dim=1).clamp(min=0)
