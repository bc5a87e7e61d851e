"""Correct gradients of convolutions on a CPU, where oneDNN (torch 2.14) is wrong.

A kernel entry that meets nothing but padding, as 8 of the 9 entries of a 3x3 kernel do
on an image of 1x1, has the gradient 0. On CPUs with AVX-512 bf16 they are left
unwritten in bfloat16: they hold whatever the memory held before, NaN at times,
which changes neither loss nor logits but ruins the weights, the norm of the gradient,
and weights that are standardized. In float32 they are 0. The kernel is cut down to the
entries that meet the image, which also saves their work. Layers that compute their
weights on the way, such as standardized ones, are computed in float32 instead.

The gradient of a 1x1 convolution with a stride, of fewer than 16 channels in the format
channels_last, is written past its memory: the process dies without a message
(https://github.com/uxlfoundation/oneDNN/issues/6035). Models with such a layer are
fastvit and mobileone. The pixels that the stride skips are left out beforehand instead.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_app.training.cpu_memory import keep_freed_memory
from kd_app.training.trainer import TrainerSettings

_FEW_CHANNELS = 16
"""Channels that oneDNN computes at once with AVX-512."""


@contextmanager
def prepare_cpu(settings: TrainerSettings, *roots: nn.Module) -> Iterator[None]:
    """Where a CPU trains, keep freed memory, and correct convolutions meanwhile."""
    keep_freed_memory(settings.device)
    with correct_convolutions(settings, *roots):
        yield


@contextmanager
def correct_convolutions(settings: TrainerSettings, *roots: nn.Module) -> Iterator[None]:
    """On a CPU, compute convolutions without the entries that meet nothing but padding,
    and 1x1 convolutions without a stride. Both cost no time.
    """
    modules = [module for root in roots for module in root.modules()]
    changed: list[nn.Conv2d] = []
    for module in modules if settings.device.type == "cpu" else ():
        if not isinstance(module, nn.Conv2d) or "forward" in vars(module):
            continue
        if _has_stride_over_few_channels(module):
            compute = _compute_without_stride
        elif "bf16" in settings.precision and _list_padding(module) != (0, 0):
            compute = _compute_without_bare_padding
        else:
            continue
        # not a closure: a copy of the model, as in a moving average, has its own module
        vars(module)["forward"] = partial(compute, module)
        changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)


def _has_stride_over_few_channels(module: nn.Conv2d) -> bool:
    return (
        type(module).forward is nn.Conv2d.forward
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and _list_padding(module) == (0, 0)
        and module.in_channels // module.groups < _FEW_CHANNELS
    )


def _compute_without_stride(module: nn.Conv2d, image: Tensor) -> Tensor:
    rows, columns = module.stride
    image = image[..., ::rows, ::columns]
    return functional.conv2d(image, module.weight, module.bias, groups=module.groups)


class _Reach(NamedTuple):
    """The kernel entries of one axis that meet the image, and what they see of it."""

    entries: slice
    before: int
    """Zeros before the image; pixels to leave out if negative."""
    after: int
    is_whole: bool
    """Every entry meets the image."""
    is_contiguous: bool
    """Every entry of the slice meets the image."""


def _compute_without_bare_padding(module: nn.Conv2d, image: Tensor) -> Tensor:
    forward = type(module).forward
    sides = zip(
        image.shape[-2:],
        module.kernel_size,
        module.stride,
        _list_padding(module),
        module.dilation,
        strict=True,
    )
    rows, columns = (_find_reach(*side) for side in sides)
    if rows.is_whole and columns.is_whole:
        return forward(module, image)
    if forward is not nn.Conv2d.forward or not (rows.is_contiguous and columns.is_contiguous):
        if not torch.is_autocast_enabled("cpu"):
            return forward(module, image)
        with torch.autocast("cpu", enabled=False):
            return forward(module, image.float()).to(torch.get_autocast_dtype("cpu"))
    zeros = (columns.before, columns.after, rows.before, rows.after)
    return functional.conv2d(
        functional.pad(image, zeros) if any(zeros) else image,
        module.weight[..., rows.entries, columns.entries],
        module.bias,
        module.stride,
        0,
        module.dilation,
        module.groups,
    )


def _list_padding(module: nn.Conv2d) -> tuple[int, ...]:
    """The zeros above and left of the image."""
    if module.padding_mode != "zeros" or module.padding == "valid":
        return (0, 0)
    if isinstance(module.padding, str):
        return tuple(
            dilation * (size - 1) // 2
            for dilation, size in zip(module.dilation, module.kernel_size, strict=True)
        )
    return module.padding


@lru_cache(maxsize=4096)
def _find_reach(length: int, size: int, stride: int, padding: int, dilation: int) -> _Reach:
    outputs = (length + 2 * padding - dilation * (size - 1) - 1) // stride + 1
    starts = [step * stride - padding for step in range(outputs)]
    entries = [
        entry
        for entry in range(size)
        if any(0 <= start + entry * dilation < length for start in starts)
    ]
    first, last = (entries[0], entries[-1]) if entries else (0, size - 1)
    return _Reach(
        slice(first, last + 1),
        before=padding - first * dilation,
        after=(outputs - 1) * stride - padding + last * dilation - (length - 1),
        is_whole=len(entries) == size,
        is_contiguous=len(entries) == last - first + 1,
    )
