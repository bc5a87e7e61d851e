"""Random numbers that depend only on an image and a step: the same in any order, on any
rank, after a restart.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kd_app.data.batch import Batch

_STEP, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685


def draw_noise(batch: Batch, count: int) -> Float[Tensor, "batch count"]:
    """Return uniform numbers in [0, 1), float64: a hash (splitmix64) of the image's
    index, the training progress and the column.

    Images without an index share one row.
    """
    column = torch.arange(count, device=batch.index.device)
    row = _mix_bits(batch.index + int(batch.progress * 2**52))
    bits: Tensor = _mix_bits(row[:, None] + column) & (2**53 - 1)
    return bits.double() / 2**53


def _mix_bits(x: Tensor) -> Tensor:
    x = x * -_STEP + _STEP
    x = (x ^ _shift_right(x, 30)) * _FIRST
    x = (x ^ _shift_right(x, 27)) * _SECOND
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: zeros are shifted in, also for negative numbers."""
    shifted: Tensor = (x >> bits) & (2 ** (64 - bits) - 1)
    return shifted
