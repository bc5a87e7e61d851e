"""Where the truth is known, verdicts and intervals are wrong as often as they claim;
docs/verdict.md has more truths (make verdict).
"""

import pytest

from benchmarks.error_rates import (
    CLASSES,
    SIDES,
    Side,
    bootstrap_coverage,
    by_classes,
    holm_error,
    power,
    seeds_coverage,
    tango_coverage,
    wilson_coverage,
    wrong_verdict,
)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("n", "margin", "worse"),
    [(100, 0.05, 0.05), (359, 0.01, 0.01), (359, 0.01, 0.013), (359, 0.01, 0.03)],
)
def test_a_loss_of_exactly_the_margin_is_never_called_kept_or_lost_more_often_than_claimed(
    side: Side, n: int, margin: float, worse: float
) -> None:
    found = wrong_verdict(side, n, margin, worse)
    assert found.measured <= found.claimed
    assert found.measured > 0.02  # nor is it so careful that it says nothing


@pytest.mark.parametrize("which", [0, 4, 7])
def test_so_it_is_where_classes_are_judged(which: int) -> None:
    for found in by_classes(*CLASSES[which], sets=200):
        assert found.measured <= found.claimed + found.error


@pytest.mark.parametrize("counts", [(6, 7, 300), (5, 12, 300)])
def test_with_as_many_images_as_are_said_to_be_needed_it_is_shown_in_about_four_of_five_sets(
    counts: tuple[int, int, int],
) -> None:
    found = power(*counts)
    assert found.claim == "about"
    assert 0.74 <= found.measured <= 0.86


def test_wilsons_and_tangos_intervals_hold_the_truth_as_often_as_they_say_on_average() -> None:
    rates = [
        wilson_coverage(n, rate / 200).measured for n in (100, 359) for rate in range(160, 199)
    ]
    rates += [tango_coverage(359, 0.01 * k, 0.02 * k).measured for k in (1, 2, 3)]
    assert sum(rates) / len(rates) == pytest.approx(0.95, abs=0.005)
    assert min(rates) > 0.9


def test_bootstrapped_intervals_hold_gain_retention_and_gap_closed_as_often_as_they_say() -> None:
    for found in bootstrap_coverage(2000, (0.93, 0.92, 0.9), sets=300, resamples=400):
        assert found.sets is not None
        assert found.sets > 250
        assert found.measured == pytest.approx(0.95, abs=found.error)


def test_intervals_over_seeds_hold_the_mean_as_often_as_they_say() -> None:
    for seeds in (2, 3):
        found = seeds_coverage(seeds, sets=1000)
        assert found.measured == pytest.approx(0.95, abs=found.error)


@pytest.mark.slow
def test_of_several_equal_methods_any_is_shown_to_differ_no_more_often_than_claimed() -> None:
    found = holm_error(5, 3, sets=1000)
    assert found.measured <= found.claimed + found.error
