"""The batch of all ranks, for loss terms that compare images with each other."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_app.data.batch import Batch
from kd_app.models.outputs import Outputs

_HELD = ("logits", "embedding", "features", "pre_activation", "tokens", "attention")


def is_distributed() -> bool:
    """More than one process trains."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def all_gather_outputs(outputs: Outputs, reads: frozenset[str]) -> Outputs:
    """`outputs` of the images of all ranks, in the order in which one rank would have
    them; of the fields `reads`, the others as they are.
    """
    return replace(
        outputs, **{name: _all_gather(getattr(outputs, name)) for name in _HELD if name in reads}
    )


def all_gather_batch(batch: Batch) -> Batch:
    """The batch of all ranks but for its pixels, which stay this rank's own."""
    return replace(
        batch,
        **{name: _all_gather(getattr(batch, name)) for name in ("target", "index", "labeled")},
    )


def _all_gather(value: Any) -> Any:
    if isinstance(value, Tensor):
        return AllGatherWithGrad.apply(value)
    if isinstance(value, tuple):
        return type(value)(*(_all_gather(part) for part in value))
    return [_all_gather(part) for part in value] if isinstance(value, list) else value


class AllGatherWithGrad(torch.autograd.Function):
    """``[B, ...]`` of every rank to ``[W B, ...]``: row ``i W + r`` is row i of rank r,
    as the training loader deals images out.

    Backward sums what every rank's loss says about a row. All ranks compute the same
    loss of the whole batch, so a row's gradient is W times that of one rank, and the
    mean over ranks that DDP takes of the parameters' gradients gives exactly the
    gradient of that loss.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        """Gather."""
        world = torch.distributed.get_world_size()
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(world)]
        torch.distributed.all_gather(parts, own.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Sum over ranks, and keep this rank's rows."""
        grad = grad.contiguous()
        torch.distributed.all_reduce(grad)
        return grad[torch.distributed.get_rank() :: torch.distributed.get_world_size()]
