"""The kinds of measures and their intervals."""

import numpy as np
import pytest

from kd_app.metrics.intervals import compute_wilson_interval
from kd_app.metrics.measure import (
    Measure,
    Plain,
    Rate,
    Resampled,
    ResampledRatio,
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


def test_a_rate_has_wilsons_interval() -> None:
    assert Rate(HITS).estimate(NONE, 0.95) == (0.75, compute_wilson_interval(75, 100, 0.95))
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


def test_a_ratio_is_undefined_if_its_denominator_may_be_0() -> None:
    part, sure, unsure = (
        mean_of(values) for values in (np.ones(100), np.ones(100), np.array([1.0, -1.0] * 50))
    )
    measures: dict[str, Measure] = {
        "sure": ResampledRatio(part, sure),
        "unsure": ResampledRatio(part, unsure),
    }
    (draws,) = resample([measures], ORDER, seed=0)
    assert measures["sure"].estimate(draws["sure"], 0.95) == (1, (1, 1))
    assert np.isnan(measures["unsure"].estimate(draws["unsure"], 0.95)[0])


@pytest.mark.parametrize("reflect", [False, True])
def test_an_undefined_value_has_no_interval(reflect: bool) -> None:
    sums = Sums(np.nan, np.ones((100, 1)), lambda sums: sums[:, 0], reflect)
    _, interval = sums.estimate(np.ones((10, 1)), 0.95)
    assert np.isnan(interval).all()
