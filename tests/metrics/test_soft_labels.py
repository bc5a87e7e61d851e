import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ConstantInputWarning, entropy, rankdata, spearmanr
from torch import Tensor

from kd_app.metrics.pair_metrics import PAIR_METRICS, ModelComparison
from kd_app.metrics.soft_labels import (
    average_ranks,
    compute_rank_correlations,
    compute_reverse_divergences,
)
from tests.metrics.records import to_records


def make_logits(
    seed: int, num_images: int, num_classes: int, *, ties: bool
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if ties:
        student, teacher = torch.randint(
            -1, 2, (2, num_images, num_classes), generator=generator
        ).float()
    else:
        student, teacher = torch.randn(2, num_images, num_classes, generator=generator) * 3
    return student, teacher


def compare(student: Tensor, teacher: Tensor) -> dict[str, float]:
    logits = {"student": student.float().numpy(), "teacher": teacher.float().numpy()}
    records = to_records(logits, np.zeros(len(student), dtype=np.int64))
    pair, names = (
        ModelComparison(records["student"], records["teacher"]),
        ("reverse_kl", "rank_correlation"),
    )
    return {
        spec.name: spec.compute(pair).estimate(np.empty((0, 2)), 0.95)[0]
        for spec in PAIR_METRICS
        if spec.name in names
    }


def compute_with_scipy(student: Tensor, teacher: Tensor) -> list[float]:
    with warnings.catch_warnings(action="ignore", category=ConstantInputWarning):
        return [
            float(spearmanr(one, other).statistic)
            for one, other in zip(student.numpy(), teacher.numpy(), strict=True)
        ]


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    num_images=st.integers(1, 12),
    num_classes=st.integers(2, 9),
    ties=st.booleans(),
)
def test_the_rank_correlation_equals_scipys_with_ties(
    seed: int, num_images: int, num_classes: int, ties: bool
) -> None:
    student, teacher = make_logits(seed, num_images, num_classes, ties=ties)
    expected = compute_with_scipy(student, teacher)
    np.testing.assert_allclose(
        compute_rank_correlations(student, teacher).numpy(), expected, atol=1e-5
    )
    defined = [rho for rho in expected if not np.isnan(rho)]
    result = compare(student, teacher)["rank_correlation"]
    assert result == pytest.approx(np.mean(defined), abs=1e-5) if defined else np.isnan(result)
    np.testing.assert_array_equal(average_ranks(student).numpy(), rankdata(student.numpy(), axis=1))


def test_the_rank_correlation_of_a_thousand_classes_equals_scipys() -> None:
    student, teacher = make_logits(0, 20, 1000, ties=False)
    np.testing.assert_allclose(
        compute_rank_correlations(student, teacher).numpy(),
        compute_with_scipy(student, teacher),
        atol=1e-6,
    )


def test_the_reverse_divergence_equals_scipys() -> None:
    student, teacher = make_logits(1, 200, 6, ties=False)
    expected = entropy(
        student.double().softmax(1).numpy(), teacher.double().softmax(1).numpy(), axis=1
    ).mean()
    assert compare(student, teacher)["reverse_kl"] == pytest.approx(expected, rel=1e-5)


def test_probabilities_and_logits_have_the_same_rank_correlation() -> None:
    student, teacher = make_logits(2, 30, 5, ties=False)
    torch.testing.assert_close(
        compute_rank_correlations(student.softmax(1), teacher.log_softmax(1)),
        compute_rank_correlations(student, teacher),
    )


def test_the_rank_correlation_of_two_classes_is_1_or_minus_1() -> None:
    student, teacher = (
        torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 4.0], [0.5, 0.5]]),
        torch.tensor([[0.1, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
    )
    assert compute_rank_correlations(student, teacher)[:3].tolist() == [1, -1, 1]
    assert compare(student, teacher)["rank_correlation"] == pytest.approx(1 / 3)


def test_images_with_constant_or_nan_scores_are_ignored() -> None:
    student = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [torch.nan, 1.0, 2.0]])
    teacher = torch.tensor([[1.0, 3.0, 2.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    assert compare(student, teacher)["rank_correlation"] == 0.5
    assert np.isnan(compare(student[1:], teacher[1:])["rank_correlation"])


def test_extreme_and_half_precision_logits_are_accepted() -> None:
    student, teacher = torch.tensor([[-1e4, 1e4]]), torch.tensor([[1e4, -1e4]])
    assert compute_reverse_divergences(student, teacher).tolist() == [pytest.approx(2e4)]
    assert compute_rank_correlations(student, teacher).tolist() == [-1]
    student, teacher = (each.half() for each in make_logits(3, 30, 5, ties=False))
    for scores in (compute_reverse_divergences, compute_rank_correlations):
        torch.testing.assert_close(
            scores(student, teacher.bfloat16()), scores(student.float(), teacher.bfloat16().float())
        )
