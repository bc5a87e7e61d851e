from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import multinomial, norm

from kd_app.config import RequestError
from kd_app.metrics import paired
from kd_app.metrics.paired import (
    compute_exact_p,
    compute_mcnemar_p,
    compute_paired_bounds,
    compute_paired_interval,
    compute_tango_score,
    is_shown_above,
)
from kd_app.metrics.verdict import Judgment, VerdictMetric, VerdictRule, VerdictTally
from tests.metrics.records import to_records


def logits(predicted: np.ndarray, num_classes: int) -> np.ndarray:
    result: np.ndarray = np.eye(num_classes, dtype=np.float32)[predicted]
    return result


def judge(
    better: int,
    worse: int,
    n: int,
    metric: VerdictMetric = "top1",
    margin: float = 0.01,
    confidence: float = 0.95,
) -> Judgment:
    """Judge two models that differ on better + worse of n images of two classes."""
    target = np.arange(n) % 2
    candidate, reference = target.copy(), target.copy()
    reference[:better] = 1 - reference[:better]
    candidate[better : better + worse] = 1 - candidate[better : better + worse]
    rule = VerdictRule(metric=metric, margin=margin, confidence=confidence)
    records = to_records(
        {"candidate": logits(candidate, 2), "reference": logits(reference, 2)}, target
    )
    return rule.judge(**records)


def score_by_numerical_likelihood(better: int, worse: int, n: int, difference: float) -> float:
    """Tango's statistic with the nuisance rate from the trinomial likelihood."""

    def unlikelihood(q: float) -> float:
        p = np.array([q + difference, q, 1 - 2 * q - difference])
        return -float(
            np.sum(np.array([better, worse, n - better - worse]) * np.log(np.maximum(p, 1e-300)))
        )

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    q = minimize_scalar(unlikelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return float(
        (better - worse - n * difference) / np.sqrt(n * (2 * q + difference - difference**2))
    )


@settings(max_examples=60)
@given(data=st.data(), n=st.integers(5, 2000), difference=st.floats(-0.5, 0.5))
def test_the_score_uses_the_most_likely_rates(
    data: st.DataObject, n: int, difference: float
) -> None:
    better = data.draw(st.integers(1, n - 2))
    worse = data.draw(st.integers(1, n - better - 1))
    assert compute_tango_score(better, worse, n, difference) == pytest.approx(
        score_by_numerical_likelihood(better, worse, n, difference), rel=1e-3, abs=1e-3
    )


def test_the_score_for_no_difference_equals_mcnemars() -> None:
    assert compute_tango_score(30, 12, 500, 0.0) == pytest.approx((30 - 12) / np.sqrt(30 + 12))


@settings(max_examples=100)
@given(data=st.data(), n=st.integers(2, 3000), confidence=st.floats(0.6, 0.99))
def test_the_score_bounds_end_at_the_limits_of_the_score_test(
    data: st.DataObject, n: int, confidence: float
) -> None:
    better = data.draw(st.integers(0, n))
    worse = data.draw(st.integers(0, n - better))
    counts = np.array([[better], [worse], [n]])
    bounds = compute_paired_bounds(counts[0], counts[1], counts[2], norm.ppf(confidence))
    low, high = (float(each[0]) for each in bounds)
    assert -1 <= low <= (better - worse) / n <= high <= 1
    if low > -0.999 and high < 0.999:
        assert compute_tango_score(better, worse, n, low) == pytest.approx(
            norm.ppf(confidence), abs=1e-4
        )
        assert compute_tango_score(better, worse, n, high) == pytest.approx(
            -norm.ppf(confidence), abs=1e-4
        )


def test_the_interval_of_swapped_models_is_mirrored() -> None:
    low, high = compute_paired_interval(20, 33, 900, 0.95)
    assert compute_paired_interval(33, 20, 900, 0.95) == pytest.approx((-high, -low))


def test_equal_accuracy_on_many_images_is_kept_and_on_few_is_not_shown() -> None:
    many, few = judge(50, 50, 10_000), judge(5, 5, 400)
    assert (many.outcome, many.n_needed) == ("kept", None)
    assert few.outcome == "not shown"
    assert few.n_needed is not None
    assert few.n_needed > 400


def test_a_clear_loss_is_lost() -> None:
    result = judge(10, 500, 10_000)
    assert result.outcome == "lost"
    assert result.difference == pytest.approx(-0.049)
    assert result.high < -0.01


def test_equal_predictions_on_few_images_are_not_decisive() -> None:
    for metric in ("top1", "balanced_accuracy", "worst_class"):
        result = judge(0, 0, 40, metric)
        assert result.outcome == "not shown"
        assert result.n_needed is not None
        assert result.n_needed > 200
        assert judge(0, 0, 1000, metric).outcome == "kept"


def test_the_worst_class_is_judged_by_its_recall() -> None:
    target = np.repeat(np.arange(10), 400)
    candidate = target.copy()
    candidate[:120] = 1
    both = to_records({"candidate": logits(candidate, 10), "reference": logits(target, 10)}, target)
    worst = VerdictRule(metric="worst_class", margin=0.05, confidence=0.95).judge(**both)
    top1 = VerdictRule(metric="top1", margin=0.05, confidence=0.95).judge(**both)
    assert (worst.outcome, top1.outcome) == ("lost", "kept")
    assert (worst.difference, top1.difference) == pytest.approx((-0.3, -0.03))


def test_a_bound_lies_beyond_the_margin_if_and_only_if_the_exact_test_rejects() -> None:
    for better, worse in ((0, 0), (3, 4), (1, 6), (9, 2), (20, 30)):
        for at in (-0.03, -0.01, 0.01):
            low, high = compute_paired_interval(better, worse, 359, 0.95, at=at)
            assert low <= (better - worse) / 359 <= high
            assert (low >= at) == is_shown_above(better, worse, 359, at, 0.95)
            assert (high <= at) == is_shown_above(worse, better, 359, -at, 0.95)


@pytest.mark.parametrize(
    ("better", "worse", "n", "at"),
    [(5, 9, 360, 0), (150, 20, 300, 0.01), (12, 3, 36, 0), (0, 0, 360, -0.01), (0, 36, 36, 0)],
)
def test_a_bound_is_that_of_halving_and_takes_few_tests(
    better: int, worse: int, n: int, at: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = Mock(side_effect=compute_exact_p)
    monkeypatch.setattr(paired, "compute_exact_p", tests)
    bound = paired._find_exact_low(better, worse, n, 0.975, at)
    assert tests.call_count <= 20
    point = (better - worse) / n
    low, high = -1.0, min(at, point)
    if is_shown_above(better, worse, n, at, 0.975):
        low, high = at, point
    while high - low > 1e-6:
        middle = (low + high) / 2
        is_low = is_shown_above(better, worse, n, middle, 0.975)
        low, high = (middle, high) if is_low else (low, middle)
    assert bound == pytest.approx(low, abs=8e-6)


def test_the_exact_bounds_are_close_to_tangos() -> None:
    better, worse, n = np.array([20]), np.array([33]), np.array([2000])
    bounds = compute_paired_bounds(better, worse, n, norm.ppf(0.95))
    assert compute_paired_interval(20, 33, 2000, 0.95, at=-0.01) == pytest.approx(
        np.ravel(bounds), abs=3e-4
    )


def test_the_exact_p_is_the_largest_tail_over_the_unknown_rate() -> None:
    better, worse, n, margin = 2, 1, 30, 0.1
    b, c = np.meshgrid(np.arange(n + 1), np.arange(n + 1))
    b, c = b[b + c <= n], c[b + c <= n]
    beyond = (
        compute_tango_score(b, c, n, -margin)
        >= compute_tango_score(better, worse, n, -margin) - 1e-9
    )
    tails = [
        multinomial.pmf(
            np.stack([b, c, n - b - c], axis=1), n, [q - margin, q, 1 - 2 * q + margin]
        )[beyond].sum()
        for q in np.linspace(0.1, 0.4, 400)
    ]
    assert compute_exact_p(better, worse, n, -margin, nuisance_error=1e-6) == pytest.approx(
        max(tails), abs=1e-4
    )


def test_a_new_worst_class_as_bad_as_the_references_is_no_loss() -> None:
    tally = VerdictTally(*np.array([[2000, 2000], [1960, 1300], [1300, 1960], [660, 0], [0, 660]]))
    result = VerdictRule(metric="worst_class", margin=0.05, confidence=0.95).judge_tally(tally)
    assert (result.outcome, result.difference) == ("kept", 0)


def test_classes_without_images_are_left_out() -> None:
    right = np.array([True, False, True, True])
    result = VerdictTally.count(right, ~right, np.array([4, 4, 1, 1]))
    assert [each.tolist() for each in vars(result).values()] == [
        [2, 2],
        [2, 1],
        [0, 1],
        [2, 1],
        [0, 1],
    ]


def test_mcnemars_p_is_binomial_and_1_without_discordant_images() -> None:
    assert compute_mcnemar_p(0, 0) == 1
    assert compute_mcnemar_p(1, 5) == pytest.approx(2 * (1 + 6) / 2**6)


def test_an_invalid_rule_is_rejected_by_name() -> None:
    with pytest.raises(RequestError, match="VerdictRule: margin=0 does not fit"):
        VerdictRule(metric="top1", margin=0, confidence=0.95)
    with pytest.raises(RequestError, match="metric='top5' does not fit"):
        VerdictRule(metric="top5", margin=0.01, confidence=0.95)  # type: ignore[arg-type]
