"""Normalization of uint8 images for a model."""

from functools import lru_cache

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from kd_app.config import InputSpec


def normalize(
    image: UInt8[Tensor, "batch in_channels height width"],
    input_spec: InputSpec,
    memory_format: torch.memory_format,
) -> Float32[Tensor, "batch channels height width"]:
    """Return ``(image / 255 - mean) / std`` in `memory_format`, on the image's device.

    Gray is repeated if the model expects color. Computed in one pass, not
    differentiable. The result is float32 under autocast too, so that values are rounded
    only once, in the first layer.
    """
    scale, bias = _compute_affine(input_spec.mean, input_spec.std, image.device)
    normalized = torch.addcmul(bias, image.contiguous(memory_format=memory_format), scale)
    # This copies only if gray was broadcast to color.
    return normalized.contiguous(memory_format=memory_format)


@lru_cache(maxsize=32)
def _compute_affine(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return scale and bias of ``image * scale + bias``, ``[1, C, 1, 1]`` each.

    Computed in float64 and rounded once.
    """
    deviation = torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1)
    scale = 1 / (255 * deviation)
    bias = -torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1) / deviation
    return scale.float().to(device), bias.float().to(device)
