"""Similarity of two models' embeddings of the same images, at any widths."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kd_app.metrics.per_image import iterate_blocks

_ROUNDING = 1e-12
"""Relative norm of a centered Gram matrix below which only rounding errors are left."""


def compute_cka(
    first: Float[np.ndarray, "images first_width"], second: Float[np.ndarray, "images second_width"]
) -> float:
    """Linear centered kernel alignment, ``|Yc' Xc|^2 / (|Xc' Xc| |Yc' Yc|)``.

    The norms are Frobenius norms; Xc and Yc are the embeddings minus their means. The
    value lies in 0..1. It is 1 for embeddings that differ by a rotation, a scale or a
    shift, and NaN if one model gives all images the same embedding or there are fewer
    than two images. A small number of images relative to the width biases the value
    upwards, so only compare values of equally many images.

    Blocks of images are reduced to float64 sums of cross-products. Kornblith, Norouzi,
    Lee, Hinton, 'Similarity of Neural Network Representations Revisited', ICML 2019,
    arXiv:1905.00414.
    """
    widths = first.shape[1], second.shape[1]
    sums = [torch.zeros(width, dtype=torch.float64) for width in widths]
    grams = [torch.zeros(width, width, dtype=torch.float64) for width in widths]
    cross = torch.zeros(*widths, dtype=torch.float64)
    for block in iterate_blocks(first, second):
        x, y = (each.double() for each in block)
        sums = [total + each.sum(dim=0) for total, each in zip(sums, (x, y), strict=True)]
        grams = [gram + each.T @ each for gram, each in zip(grams, (x, y), strict=True)]
        cross = cross + x.T @ y
    n = torch.tensor(len(first))
    norms = [_compute_centered_norm(*each, n) for each in zip(grams, sums, strict=True)]
    cross = cross - torch.outer(*sums) / n
    return float((cross.square().sum() / (norms[0] * norms[1])).clamp(max=1))


def _compute_centered_norm(gram: Tensor, total: Tensor, n: Tensor) -> Tensor:
    """Norm of the centered Gram matrix; NaN if the embeddings do not vary."""
    norm: Tensor = torch.linalg.matrix_norm(gram - torch.outer(total, total) / n)
    return norm.where(norm > _ROUNDING * torch.linalg.matrix_norm(gram), torch.nan)
