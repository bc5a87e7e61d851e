"""From the bytes of an image to the numbers a model reads."""

from functools import lru_cache

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from kd_app.config import InputSpec


def normalize(
    image: UInt8[Tensor, "batch in_channels height width"],
    pixels: InputSpec,
    memory_format: torch.memory_format,
) -> Float32[Tensor, "batch channels height width"]:
    """``(image / 255 - mean) / std`` in one pass on the image's device, in
    `memory_format`. A gray image is repeated where the model wants color.

    Not for autograd: the result has no history. float32 under autocast too, which
    rounds once, inside the first layer.
    """
    scale, bias = _compute_affine(pixels.mean, pixels.std, image.device)
    made = torch.addcmul(bias, image.contiguous(memory_format=memory_format), scale)
    return made.contiguous(memory_format=memory_format)  # a copy only where gray became color


@lru_cache(maxsize=32)
def _compute_affine(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """``image * scale + bias``, computed in float64 and rounded once; ``[1, C, 1, 1]``
    each.
    """
    deviation = torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1)
    scale, bias = (
        1 / (255 * deviation),
        -torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1) / deviation,
    )
    return scale.float().to(device), bias.float().to(device)
