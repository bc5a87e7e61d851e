"""Random numbers that belong to an image and a moment of the training: the same in any
order, on any rank, after a restart.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kd_app.data.batch import Batch

_STEP, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685


def noise(batch: Batch, count: int) -> Float[Tensor, "batch count"]:
    """Uniform numbers in [0, 1), float64: a hash (splitmix64) of the image's index, the
    progress of the training and the column.

    Images without an index of their own share their row.
    """
    column = torch.arange(count, device=batch.index.device)
    row = _mixed(batch.index + int(batch.progress * 2**52))
    drawn: Tensor = _mixed(row[:, None] + column) & (2**53 - 1)
    return drawn.double() / 2**53


def _mixed(x: Tensor) -> Tensor:
    x = x * -_STEP + _STEP
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Right, with zeros coming in: the sign is a bit like the others."""
    shifted: Tensor = (x >> bits) & (2 ** (64 - bits) - 1)
    return shifted
