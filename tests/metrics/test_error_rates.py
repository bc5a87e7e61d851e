"""Measured error rates of verdicts and intervals, for known true values.

docs/verdict.md has more cases (make verdict).
"""

import pytest

from benchmarks.coverage_rates import (
    difference_coverage,
    gap_coverage,
    holm_error,
    retention_coverage,
    seeds_coverage,
    share_coverage,
)
from benchmarks.error_rates import CLASSES, SIDES, Side, by_classes, power, wrong_verdict


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("n", "margin", "worse"),
    [(100, 0.05, 0.05), (359, 0.01, 0.01), (359, 0.01, 0.013), (359, 0.01, 0.03)],
)
def test_error_rates_at_the_margin_do_not_exceed_the_claim(
    side: Side, n: int, margin: float, worse: float
) -> None:
    result = wrong_verdict(side, n, margin, worse)
    assert result.measured <= result.claimed
    assert result.measured > 0.02  # the rule is not overly conservative


@pytest.mark.parametrize("which", [0, 7])
def test_error_rates_of_class_metrics_do_not_exceed_the_claim(which: int) -> None:
    for result in by_classes(*CLASSES[which], sets=60):
        assert result.measured <= result.claimed + result.error


@pytest.mark.parametrize(
    "counts", [pytest.param((6, 7, 300), marks=pytest.mark.slow), (5, 12, 300)]
)
def test_the_needed_number_of_images_is_decisive_in_four_of_five_sets(
    counts: tuple[int, int, int],
) -> None:
    result = power(*counts)
    assert result.claim == "about"
    assert 0.74 <= result.measured <= 0.86


def test_intervals_of_shares_and_differences_cover_every_truth() -> None:
    assert share_coverage(49).measured >= 0.95
    assert difference_coverage(20, (0.0, 0.01, 0.1, 0.5)).measured >= 0.95


def test_the_interval_of_retention_covers_the_truth() -> None:
    result = retention_coverage(20, 0.8, 0.1, 0.05, sets=50)
    assert result.measured >= 0.95 - result.error


def test_the_bootstrap_interval_of_the_gap_closed_has_the_claimed_coverage() -> None:
    result = gap_coverage(2000, (0.93, 0.92, 0.9), sets=60, resamples=400)
    assert result.sets is not None
    assert result.sets > 45
    assert result.measured == pytest.approx(0.95, abs=result.error)


def test_intervals_over_seeds_have_the_claimed_coverage() -> None:
    for seeds in (2, 3):
        result = seeds_coverage(seeds, 0.98, 0.014, sets=250)
        assert result.measured == pytest.approx(0.95, abs=result.error)


@pytest.mark.slow
def test_holms_correction_keeps_the_family_wise_error_rate() -> None:
    result = holm_error(5, 3, sets=1000)
    assert result.measured <= result.claimed + result.error
