"""The shape of a set of embeddings: how they spread, and how alike two models' are."""

import numpy as np
import torch
from jaxtyping import Float

from kd_app.metrics.neighbors import normalize_rows

_BLOCK = 2048
_ROUNDING = 1e-9

Images = Float[np.ndarray, "_ _"]


def compute_debiased_cka(
    first: Float[np.ndarray, "images first_width"], second: Float[np.ndarray, "images second_width"]
) -> float:
    """Linear centered kernel alignment with unbiased estimates of HSIC.

    ``HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`` for the Gram matrices K and L of n
    images, with zero diagonals: ``HSIC(K, L) = (tr(K L) + (1'K1)(1'L1) / ((n-1)(n-2)) -
    2 (1'K L1) / (n-2)) / (n (n-3))``. About 0 for independent embeddings of any width,
    where the plain estimate grows with the width (0.6 for widths of 512 and 1,280 and
    500 images); it may be slightly negative. NaN for fewer than four images, and if one
    model gives all images the same embedding. Song, Smola, Gretton, Bedo, Borgwardt,
    "Feature Selection via Dependence Maximization", JMLR 2012; Nguyen, Raghu,
    Kornblith, "Do Wide and Deep Networks Learn the Same Things?", ICLR 2021, arXiv
    2010.15327.
    """
    n = len(first)
    if n < 4:
        return float("nan")
    x, y = (
        each.astype(np.float64) - each.mean(axis=0, dtype=np.float64) for each in (first, second)
    )
    cross, one, other = _compute_hsic(x, y), _compute_hsic(x, x), _compute_hsic(y, y)
    limits = [_ROUNDING * float((each**2).sum()) ** 2 / n**2 for each in (x, y)]
    if not np.isfinite(cross) or one <= limits[0] or other <= limits[1]:
        return float("nan")
    return float(cross / np.sqrt(one * other))


def _compute_hsic(x: Images, y: Images) -> float:
    """The unbiased estimate from sums over features, without an n x n matrix."""
    n = len(x)
    own_x, own_y = (x**2).sum(axis=1), (y**2).sum(axis=1)
    rows_x, rows_y = x @ x.sum(axis=0) - own_x, y @ y.sum(axis=0) - own_y
    trace = float(((x.T @ y) ** 2).sum() - own_x @ own_y)
    sums = float(rows_x.sum() * rows_y.sum()) / ((n - 1) * (n - 2))
    return (trace + sums - 2 * float(rows_x @ rows_y) / (n - 2)) / (n * (n - 3))


def compute_effective_rank(embeddings: Images) -> float:
    """``exp(-sum_i p_i log p_i)``, with the singular values of the centered rows of
    length 1 as shares p.

    Between 1 and the width; 0 if all images have the same embedding. Roy & Vetterli,
    "The Effective Rank", EUSIPCO 2007.
    """
    rows = normalize_rows(embeddings).double()
    centered = rows - rows.mean(dim=0)
    # singular values from the smaller Gram matrix
    gram = centered.T @ centered if rows.shape[1] <= rows.shape[0] else centered @ centered.T
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    if float(values.square().sum()) <= _ROUNDING * len(rows):
        return 0.0
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


def compute_spread(embeddings: Images) -> float:
    """``mean_i |x_i - mean|^2`` for rows x of length 1: between 0, if all are equal,
    and 1.
    """
    rows = normalize_rows(embeddings)
    return float((rows - rows.mean(dim=0)).square().sum(dim=1).mean())


def compute_uniformity(embeddings: Images) -> float:
    """``log mean_{i<j} exp(-2 |x_i - x_j|^2)`` for rows of length 1; the lower, the
    more evenly they spread. 0 if all are equal, NaN for fewer than two.

    Wang & Isola, "Understanding Contrastive Representation Learning through Alignment
    and Uniformity on the Hypersphere", ICML 2020, arXiv 2005.10242.
    """
    rows = normalize_rows(embeddings)
    n = len(rows)
    if n < 2:
        return float("nan")
    total = 0.0
    for start in range(0, n, _BLOCK):
        # |x - y|^2 = 2 - 2 x'y
        similarity = rows[start : start + _BLOCK] @ rows.T
        total += float((4 * (similarity - 1)).exp().double().sum())
    own = float((4 * ((rows * rows).sum(dim=1) - 1)).exp().double().sum())
    return float(np.log((total - own) / (n * (n - 1))))
