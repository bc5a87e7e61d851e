import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kd_app.metrics.cka import compute_cka


def compute(first: Tensor, second: Tensor) -> float:
    return compute_cka(first.numpy(), second.numpy())


def compute_by_gram_matrices(first: np.ndarray, second: np.ndarray) -> float:
    """HSIC of the centered n x n Gram matrices (Kornblith et al. 2019, equation 4)."""
    n = len(first)
    center = np.eye(n) - 1 / n
    one, other = (
        center @ x @ x.T @ center for x in (first.astype(np.float64), second.astype(np.float64))
    )
    return float((one * other).sum() / np.sqrt((one * one).sum() * (other * other).sum()))


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    num_images=st.integers(2, 30),
    widths=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    shift=st.floats(-50, 50),
)
def test_cka_equals_the_alignment_of_the_centered_gram_matrices(
    seed: int, num_images: int, widths: tuple[int, int], shift: float
) -> None:
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((num_images, 3))
    first, second = (
        shared @ rng.standard_normal((3, width)) + rng.standard_normal((num_images, width))
        for width in widths
    )
    first += shift
    assert compute(torch.from_numpy(first), torch.from_numpy(second)) == pytest.approx(
        compute_by_gram_matrices(first, second), abs=1e-8
    )


def test_cka_ignores_rotation_scale_and_shift_but_not_noise() -> None:
    x = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1))).Q
    assert compute(x, 3 * x @ rotation + 7) == pytest.approx(1, abs=1e-6)
    assert compute(x, torch.randn(500, 16, generator=torch.Generator().manual_seed(2))) < 0.1


def test_blocks_of_images_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = torch.randn(40, 5), torch.randn(40, 3)
    whole = compute(first, second)
    monkeypatch.setattr("kd_app.metrics.per_image._VALUES", 35)
    assert compute(first, second) == pytest.approx(whole, abs=1e-10)


def test_cka_is_accurate_for_a_large_mean_even_in_half_precision() -> None:
    x = torch.randn(200, 4) + 1000
    assert compute(x, x) == pytest.approx(1)
    assert compute(x.half(), x.half()) == pytest.approx(1)


@pytest.mark.parametrize("num_images", [0, 1, 20])
def test_cka_of_constant_embeddings_is_nan(num_images: int) -> None:
    assert np.isnan(compute(torch.full((num_images, 4), 0.1), torch.randn(num_images, 4)))
