"""Comparison of the soft labels of a student and its teacher."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from kd_app.metrics.scores import to_float32


def average_ranks(scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """Rank of each class score within an image, from 1 (the smallest) to K.

    Equal scores get the mean of their ranks.
    """
    ordered, order = scores.sort(dim=1)
    numbers = torch.arange(1, scores.shape[1] + 1, device=scores.device, dtype=scores.dtype)
    place = numbers.expand_as(scores).contiguous()
    starts = functional.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0), value=True)
    tied = ~starts.all(dim=1)
    place[tied] = _share_ranks(place[tied], starts[tied])
    return torch.empty_like(scores).scatter_(1, order, place)


def _share_ranks(
    place: Float[Tensor, "batch classes"], starts: Bool[Tensor, "batch classes"]
) -> Float[Tensor, "batch classes"]:
    """Replace the ranks of each run of equal scores by their mean.

    Scores are in ascending order; `starts` marks the first score of each run.
    """
    first = place.where(starts, 0).cummax(dim=1).values
    ends = functional.pad(starts[:, 1:], (0, 1), value=True)
    last = place.where(ends, torch.inf).flip(1).cummin(dim=1).values.flip(1)
    return (first + last) / 2


def compute_rank_correlations(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]
) -> Float[Tensor, " batch"]:
    """Spearman's rho between the two models' class scores on each image, -1..1.

    Computed as Pearson's correlation of `average_ranks`, so logits and probabilities
    give the same value. With two classes, the value is +1 if both models prefer the
    same class and -1 otherwise. NaN if a model gives all classes the same score, or a
    score is NaN. C. Spearman, American Journal of Psychology 1904.
    """
    student, teacher = to_float32(student), to_float32(teacher)
    unknown = student.isnan().any(dim=1) | teacher.isnan().any(dim=1)
    middle = (student.shape[1] + 1) / 2
    one, other = average_ranks(student) - middle, average_ranks(teacher) - middle
    rho = (one * other).sum(dim=1) / (one.square().sum(dim=1) * other.square().sum(dim=1)).sqrt()
    return rho.clamp(-1, 1).masked_fill(unknown, torch.nan)


def compute_reverse_divergences(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]
) -> Float[Tensor, " batch"]:
    """``KL(p_student || p_teacher)`` of each image at temperature 1, nats.

    Large on images for which the student is confident of a class that is unlikely under
    the teacher.
    """
    student, teacher = to_float32(student), to_float32(teacher)
    kl = functional.kl_div(
        teacher.log_softmax(dim=1), student.softmax(dim=1).to(teacher.dtype), reduction="none"
    )
    return kl.sum(dim=1).clamp(min=0)
