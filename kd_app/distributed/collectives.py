"""Gathering of the batch of all ranks, for loss terms that compare images."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_app.data.batch import Batch
from kd_app.models.outputs import Outputs

_FIELDS = ("logits", "embedding", "features", "pre_activation", "tokens", "attention")


def is_distributed() -> bool:
    """Whether more than one process trains."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def gather_outputs(outputs: Outputs, reads: frozenset[str]) -> Outputs:
    """`outputs` with the fields `reads` gathered from all ranks, in the order of images
    that a single rank would have; other fields are unchanged.
    """
    fields = {name: _gather(getattr(outputs, name)) for name in _FIELDS if name in reads}
    return replace(outputs, **fields)


def gather_batch(batch: Batch) -> Batch:
    """The batch of all ranks, except for the images, which remain this rank's."""
    fields = {name: _gather(getattr(batch, name)) for name in ("target", "index", "labeled")}
    return replace(batch, **fields)


def _gather(value: Any) -> Any:
    if isinstance(value, Tensor):
        return AllGatherWithGrad.apply(value)
    if isinstance(value, tuple):
        return type(value)(*(_gather(part) for part in value))
    return [_gather(part) for part in value] if isinstance(value, list) else value


class AllGatherWithGrad(torch.autograd.Function):
    """Gather ``[B, ...]`` of every rank into ``[W B, ...]``: row ``i W + r`` is row i
    of rank r, the order in which the training loader distributes images.

    Backward sums the gradients of all ranks. All ranks compute the same loss of the
    global batch, so a row's gradient is W times that of one rank. DDP averages the
    parameters' gradients over W ranks, which gives exactly the gradient of that loss.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, rows)
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Sum over ranks, and select the rows of this rank."""
        grad = grad.contiguous()
        torch.distributed.all_reduce(grad)
        return grad[torch.distributed.get_rank() :: torch.distributed.get_world_size()]
