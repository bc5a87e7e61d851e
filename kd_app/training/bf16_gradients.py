"""Correct gradients of convolutions in bfloat16 on a CPU.

A kernel entry that meets nothing but padding, as 8 of the 9 entries of a 3x3 kernel do
on an image of 1x1, has the gradient 0. oneDNN (torch 2.14, CPUs with AVX-512 bf16)
leaves such entries of a bfloat16 gradient unwritten: they hold whatever the memory held
before, NaN at times, which changes neither loss nor logits but ruins the weights, the
norm of the gradient, and weights that are standardized. In float32 they are 0.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_app.training.trainer import TrainerSettings


@contextmanager
def correct_bf16_gradients(settings: TrainerSettings, *roots: nn.Module) -> Iterator[None]:
    """Compute convolutions with an entry that meets nothing but padding in float32, in
    a training in bfloat16 on a CPU; such convolutions have few pixels and are cheap.
    """
    is_concerned = settings.device.type == "cpu" and "bf16" in settings.precision
    convolutions = [
        module
        for root in (roots if is_concerned else ())
        for module in root.modules()
        if isinstance(module, nn.Conv2d)
        and "forward" not in vars(module)
        and _list_padding(module) != (0, 0)
    ]
    for module in convolutions:
        # not a closure: a copy of the model, as in a moving average, has its own module
        vars(module)["forward"] = partial(_forward, module)
    try:
        yield
    finally:
        for module in convolutions:
            vars(module).pop("forward", None)


def _forward(module: nn.Conv2d, image: Tensor) -> Tensor:
    forward = type(module).forward
    sides = zip(
        image.shape[-2:],
        module.kernel_size,
        module.stride,
        _list_padding(module),
        module.dilation,
        strict=True,
    )
    if not any(_has_entry_on_padding(*side) for side in sides):
        return forward(module, image)
    if torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return forward(module, image.float()).to(torch.get_autocast_dtype("cpu"))
    if image.dtype != torch.bfloat16 or forward is not nn.Conv2d.forward:
        return forward(module, image)
    weight, bias = module.weight.float(), module.bias
    bias = None if bias is None else bias.float()
    return functional.conv2d(
        image.float(),
        weight,
        bias,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
    ).to(image.dtype)


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
def _has_entry_on_padding(length: int, size: int, stride: int, padding: int, dilation: int) -> bool:
    outputs = (length + 2 * padding - dilation * (size - 1) - 1) // stride + 1
    starts = [step * stride - padding for step in range(outputs)]
    return any(
        not any(0 <= start + entry * dilation < length for start in starts) for entry in range(size)
    )
