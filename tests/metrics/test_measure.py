"""The kinds of measures and their intervals."""

import numpy as np
import pytest

from kd_app.metrics.intervals import compute_share_interval
from kd_app.metrics.measure import (
    DifferenceRatio,
    Measure,
    PairedDifference,
    PairedRatio,
    Plain,
    Rate,
    Resampled,
    Sums,
    Weights,
    estimate_rate,
    resample,
)

HITS = np.array([True, False, True, True] * 25)
ORDER = np.arange(100)
NONE = np.empty((0, 0))


def mean_of(values: np.ndarray) -> Resampled:
    def compute(weights: Weights) -> np.ndarray:
        mean: np.ndarray = weights @ values / len(values)
        return mean

    return Resampled(float(values.mean()), compute)


def test_a_rate_has_the_exact_interval() -> None:
    assert Rate(HITS).estimate(NONE, 0.95) == (0.75, compute_share_interval(75, 100, 0.95))
    assert estimate_rate(HITS, 0.95) == Rate(HITS).estimate(NONE, 0.95)


def test_a_rate_without_images_is_undefined() -> None:
    value, interval = estimate_rate(HITS[:0], 0.95)
    assert np.isnan(value)
    assert interval == (0, 1)


def test_a_plain_value_has_no_interval() -> None:
    value, interval = Plain(0.5).estimate(NONE, 0.95)
    assert value == 0.5
    assert np.isnan(interval).all()


def test_sums_and_functions_of_the_resamples_use_the_same_draws() -> None:
    hits = HITS.astype(np.float64)
    measures: dict[str, Measure] = {
        "sums": Sums(0.75, hits[:, None], lambda sums: sums[:, 0] / 100),
        "rate": Rate(HITS),
        "mean": mean_of(hits),
    }
    (draws,) = resample([measures], ORDER, seed=0)
    assert {name: each.shape for name, each in draws.items()} == {
        "sums": (1000, 1),
        "rate": (1000, 0),
        "mean": (1000, 1),
    }
    np.testing.assert_allclose(draws["sums"] / 100, draws["mean"])
    assert measures["sums"].estimate(draws["sums"], 0.9) == measures["mean"].estimate(
        draws["mean"], 0.9
    )


def flip(count: int) -> np.ndarray:
    """`HITS` with `count` hits turned into misses."""
    hits = HITS.copy()
    hits[np.flatnonzero(HITS)[:count]] = False
    return hits


def test_a_difference_of_equal_models_has_an_interval_with_width() -> None:
    value, (low, high) = PairedDifference(HITS[:49], HITS[:49]).estimate(NONE, 0.95)
    assert value == 0
    assert (low, high) == pytest.approx((-0.0733, 0.0733), abs=1e-4)
    value, (low, high) = PairedDifference(HITS, flip(20)).estimate(NONE, 0.95)
    assert value == 0.2
    assert (low, high) == pytest.approx((0.128, 0.292), abs=5e-3)


def test_a_ratio_of_equal_accuracies_has_an_interval_with_width() -> None:
    value, (low, high) = PairedRatio(HITS, HITS).estimate(NONE, 0.95)
    assert value == 1
    assert (low, high) == pytest.approx((0.948, 1.055), abs=5e-3)
    value, (low, high) = PairedRatio(HITS & False, HITS).estimate(NONE, 0.95)
    assert (value, low) == (0, 0)
    assert 0 < high < 0.3
    assert np.isnan(PairedRatio(HITS, HITS & False).estimate(NONE, 0.95)[0])


@pytest.mark.parametrize(
    ("control", "student", "defined", "bounded"),
    [(40, 20, True, True), (40, 40, True, False), (40, 0, True, False), (2, 1, False, False)],
)
def test_a_ratio_of_differences_needs_images_that_differ(
    control: int, student: int, defined: bool, bounded: bool
) -> None:
    ratio = DifferenceRatio(
        PairedDifference(flip(student), flip(control)),
        PairedDifference(HITS, flip(control)),
        PairedDifference(HITS, flip(student)),
        ORDER,
    )
    (draws,) = resample([{"closed": ratio}], ORDER, seed=0)
    value, interval = ratio.estimate(draws["closed"], 0.95)
    assert value == pytest.approx(1 - student / control, nan_ok=True) or not defined
    assert np.isnan(value) != defined
    assert np.isnan(interval).any() != bounded


def test_a_bootstrap_without_spread_has_no_interval() -> None:
    measure = Sums(0.3, np.full((100, 1), 0.3), lambda sums: sums[:, 0] / 100)
    (draws,) = resample([{"mean": measure}], ORDER, seed=0)
    value, interval = measure.estimate(draws["mean"], 0.95)
    assert value == 0.3
    assert np.isnan(interval).all()


@pytest.mark.parametrize("reflect", [False, True])
def test_an_undefined_value_has_no_interval(reflect: bool) -> None:
    sums = Sums(np.nan, np.ones((100, 1)), lambda sums: sums[:, 0], reflect)
    _, interval = sums.estimate(np.ones((10, 1)), 0.95)
    assert np.isnan(interval).all()
