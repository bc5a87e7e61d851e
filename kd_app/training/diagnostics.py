"""What single loss terms do to the student: is a term finite, non-zero and with gradient,
and how large is its share of the gradient?

The graph of the values stays, and no parameter gets a ``.grad``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kd_app.config import RunError
from kd_app.data.batch import Batch
from kd_app.training.loss import DistillationLoss


@dataclass(frozen=True)
class TermFault:
    """A term that can't teach: which, in which way, and a message for the user."""

    term: str
    kind: Literal["not-finite", "zero", "no-gradient"]
    text: str


def check_terms(
    loss: DistillationLoss, values: Mapping[str, Tensor], student: nn.Module, batch: Batch
) -> None:
    """Raise `RunError` for the first of `find_faults`."""
    for fault in find_faults(loss, values, student, batch):
        raise RunError(fault.text)


def find_faults(
    loss: DistillationLoss, values: Mapping[str, Tensor], student: nn.Module, batch: Batch
) -> Iterator[TermFault]:
    """The faults of the terms' `values` on one of the first batches.

    Any term must be finite. A distillation term must also be non-zero and give the
    student a gradient, unless it reads labels that some images lack.
    """
    parameters = _list_trainable(student)
    for name, term in loss.chosen.items():
        if not torch.isfinite(values[name]):
            yield TermFault(
                name,
                "not-finite",
                f"The loss term {name} is {values[name].item()} in the first steps. Lower"
                " optimizer.lr, or use trainer.precision=32-true.",
            )
            continue
        if (
            not term.needs_teacher
            or loss.weights[name] == 0
            or (term.uses_labels and batch.labeled is not None)
        ):
            continue
        if values[name].item() == 0:
            yield TermFault(
                name,
                "zero",
                f"The loss term {name} is exactly zero in the first steps: student and teacher"
                " already agree on what it reads. Leave it out.",
            )
        elif not any(bool(grad.any()) for grad in _compute_gradients(values[name], parameters)):
            yield TermFault(
                name,
                "no-gradient",
                f"The loss term {name} gives the student no gradient in the first steps, so it"
                " teaches nothing. Leave it out, or change it.",
            )


def compute_gradient_norms(
    loss: DistillationLoss, values: Mapping[str, Tensor], student: nn.Module
) -> dict[str, float]:
    """``|weight * d term / d student|_2`` of each term, at the top of its schedule; 0
    where it has no gradient.
    """
    parameters = _list_trainable(student)
    return {
        name: loss.weights[name] * _compute_norm(_compute_gradients(values[name], parameters))
        for name in values
    }


def compute_gradient_shares(
    loss: DistillationLoss, values: Mapping[str, Tensor], student: nn.Module, progress: float
) -> dict[str, float]:
    """``<term>_share`` of each term and ``<term>_cosine`` of each distillation term.

    For g_i, the gradient of a weighted term for the student: the share is ``|g_i|_2 /
    sum_j |g_j|_2`` (all 0 if no term has a gradient); the cosine is that of g_i and the
    sum of the gradients of the terms that read no teacher (0 if one of the two is zero).
    Only the images of this process count.
    """
    parameters = _list_trainable(student)
    gradients = {
        name: loss.weight(name, progress) * _flatten_gradient(value, parameters)
        for name, value in values.items()
    }
    norms = {name: float(gradient.norm()) for name, gradient in gradients.items()}
    total = sum(norms.values())
    shares = {f"{name}_share": norm / total if total else 0.0 for name, norm in norms.items()}
    labels = [
        gradient for name, gradient in gradients.items() if not loss.chosen[name].needs_teacher
    ]
    if not labels:
        return shares
    label_gradient = torch.stack(labels).sum(dim=0)
    cosines = {
        f"{name}_cosine": float(torch.cosine_similarity(gradients[name], label_gradient, dim=0))
        for name, term in loss.chosen.items()
        if term.needs_teacher
    }
    return shares | cosines


def _list_trainable(student: nn.Module) -> list[nn.Parameter]:
    return [p for p in student.parameters() if p.requires_grad]


def _compute_gradients(value: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The gradients of one term, of the parameters that have any."""
    if not value.requires_grad:
        return []
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return [each for each in gradients if each is not None]


def _flatten_gradient(value: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """``[P]``: the gradient of one term for all parameters, 0 where there is none, in
    float32 or better.
    """
    gradients = (
        torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        if value.requires_grad
        else [None] * len(parameters)
    )
    parts = [
        torch.zeros_like(p) if each is None else each
        for p, each in zip(parameters, gradients, strict=True)
    ]
    return torch.cat(
        [part.flatten().to(torch.promote_types(part.dtype, torch.float32)) for part in parts]
    )


def _compute_norm(gradients: Sequence[Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
