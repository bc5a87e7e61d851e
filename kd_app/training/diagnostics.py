"""Diagnostics of single loss terms: faults, gradient norms and gradient shares.

The functions keep the graph of the values and set no parameter's ``.grad``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kd_app.config import RunError
from kd_app.data.batch import Batch
from kd_app.losses.distillation_loss import DistillationLoss


@dataclass(frozen=True)
class TermFault:
    """A loss term that cannot train the student, with a message for the user."""

    term: str
    kind: Literal["not-finite", "zero", "no-gradient"]
    text: str


def check_terms(
    loss: DistillationLoss, values: Mapping[str, Tensor], student: nn.Module, batch: Batch
) -> None:
    """Raise `RunError` for the first fault that `find_faults` yields."""
    for fault in find_faults(loss, values, student, batch):
        raise RunError(fault.text)


def find_faults(
    loss: DistillationLoss, values: Mapping[str, Tensor], student: nn.Module, batch: Batch
) -> Iterator[TermFault]:
    """Yield the faults of the terms' `values` on one of the first batches.

    Every term must be finite. A distillation term must also be non-zero and have a
    gradient for the student, unless the term reads labels that some images lack.
    """
    parameters = _list_trainable(student)
    for name, term in loss.chosen.items():
        if not torch.isfinite(values[name]):
            yield TermFault(
                name,
                "not-finite",
                f"The loss term {name} is {values[name].item()} in the first steps."
                f" {_explain_nonfinite(batch)}",
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
                " already agree in the outputs that the term reads. Remove the term.",
            )
        elif not any(bool(grad.any()) for grad in _compute_gradients(values[name], parameters)):
            yield TermFault(
                name,
                "no-gradient",
                f"The loss term {name} has no gradient for the student in the first steps, so the"
                " term has no effect. Remove the term, or change its settings.",
            )


def _explain_nonfinite(batch: Batch) -> str:
    bad = ~batch.image.flatten(1).isfinite().all(dim=1)
    if bool(bad.any()):
        return (
            f"{int(bad.sum())} of {len(bad)} images of the batch have NaN or infinite pixels:"
            " correct them, or what normalizes them (a deviation of 0)."
        )
    return "Lower optimizer.lr, or use trainer.precision=32-true."


def compute_gradient_norms(
    loss: DistillationLoss, values: Mapping[str, Tensor], student: nn.Module
) -> dict[str, float]:
    """``|weight * d term / d student|_2`` of each term at the maximum of its schedule;
    0 for a term without gradient.
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

    With g_i the gradient of weighted term i for the student, the share is ``|g_i|_2 /
    sum_j |g_j|_2`` (0 if no term has a gradient). The cosine is the cosine similarity
    of g_i and the summed gradients of the terms without teacher (0 if either is zero).
    Only the images of this process count.
    """
    parameters = _list_trainable(student)
    gradients = {
        name: loss.compute_weight(name, progress) * _flatten_gradient(value, parameters)
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
    """The gradients of one term, for the parameters that the term depends on."""
    if not value.requires_grad:
        return []
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return [each for each in gradients if each is not None]


def _flatten_gradient(value: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """``[P]``: the gradient of one term for all parameters, in float32 or float64; 0
    for parameters that the term does not depend on.
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
