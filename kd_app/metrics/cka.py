"""How alike two models' embeddings of the same images are, whatever their widths."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kd_app.metrics.per_image import iterate_blocks

_NOTHING = 1e-12
"""Share of a Gram matrix below which what is left after centering is rounding."""


def compute_cka(
    first: Float[np.ndarray, "images first_width"], second: Float[np.ndarray, "images second_width"]
) -> float:
    """Linear centered kernel alignment: ``|Yc' Xc|^2 / (|Xc' Xc| |Yc' Yc|)``, Frobenius
    norms, Xc and Yc the embeddings minus their means. In 0..1; NaN where one model
    gives all images the same embedding, or there are fewer than two images.

    1 for embeddings that differ by a rotation, a scale or a shift. Few images beside
    the width push it up: compare values of equally many images. Sums of cross-products
    in float64 are all that is kept of a block of images. Kornblith, Norouzi, Lee,
    Hinton, 'Similarity of Neural Network Representations Revisited', ICML 2019,
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
    norms = [_center(gram, total, n) for gram, total in zip(grams, sums, strict=True)]
    cross = cross - torch.outer(*sums) / n
    return float((cross.square().sum() / (norms[0] * norms[1])).clamp(max=1))


def _center(gram: Tensor, total: Tensor, n: Tensor) -> Tensor:
    """Norm of the cross-products of the embeddings minus their mean; NaN where they do
    not vary.
    """
    norm: Tensor = torch.linalg.matrix_norm(gram - torch.outer(total, total) / n)
    return norm.where(norm > _NOTHING * torch.linalg.matrix_norm(gram), torch.nan)
