from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from kd_app.metrics.intervals import (
    bootstrap,
    compute_percentile_interval,
    compute_recalls,
    compute_share_interval,
    compute_wilson_bounds,
    find_class_starts,
    reflect_interval,
)


@settings(max_examples=200)
@given(data=st.data(), n=st.integers(1, 5000), confidence=st.floats(0.5, 0.999))
def test_wilsons_interval_equals_scipys(data: st.DataObject, n: int, confidence: float) -> None:
    successes = data.draw(st.integers(0, n))
    expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    low, high = compute_wilson_bounds(
        np.array([successes]), np.array([n]), NormalDist().inv_cdf(0.5 + confidence / 2)
    )
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=1e-9)


@settings(max_examples=100)
@given(data=st.data(), n=st.integers(1, 5000), confidence=st.floats(0.5, 0.999))
def test_the_interval_of_a_share_equals_scipys_exact_one(
    data: st.DataObject, n: int, confidence: float
) -> None:
    successes = data.draw(st.integers(0, n))
    expected = binomtest(successes, n).proportion_ci(confidence, method="exact")
    assert compute_share_interval(successes, n, confidence) == pytest.approx(
        (expected.low, expected.high), abs=1e-9
    )


@settings(max_examples=200)
@given(data=st.data(), n=st.integers(1, 5000), confidence=st.floats(0.01, 0.999))
def test_the_interval_of_a_share_includes_the_rate_and_stays_within_0_and_1(
    data: st.DataObject, n: int, confidence: float
) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = compute_share_interval(successes, n, confidence)
    assert 0 <= low <= successes / n <= high <= 1


def test_the_interval_without_images_is_0_to_1() -> None:
    assert compute_share_interval(0, 0, 0.95) == (0, 1)


def test_a_resample_has_as_many_images_and_each_image_once_on_average() -> None:
    draws = bootstrap(
        lambda w: {"all": w.sum(axis=1), "first": w[:, 0], "square": w[:, 1] ** 2},
        50,
        seed=0,
        resamples=4000,
    )
    assert set(draws["all"]) == {50}
    assert draws["first"].mean() == pytest.approx(1, abs=0.05)
    assert draws["square"].mean() == pytest.approx(1 + 49 / 50, abs=0.15)


def test_equal_seeds_give_equal_draws_at_any_block_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def draw(seed: int) -> list[float]:
        return list(
            bootstrap(lambda w: {"x": w @ np.arange(30.0)}, 30, seed=seed, resamples=100)["x"]
        )

    whole = draw(3)
    assert draw(4) != whole
    monkeypatch.setattr("kd_app.metrics.intervals._BLOCK", 70)
    assert draw(3) == whole


def test_all_statistics_use_the_same_draws() -> None:
    value = np.random.default_rng(0).random(40)
    draws = bootstrap(lambda w: {"a": w @ value, "b": w @ value.copy()}, 40, seed=1)
    assert (draws["a"] == draws["b"]).all()


def test_the_percentile_interval_of_a_mean_has_the_claimed_coverage() -> None:
    rng, held = np.random.default_rng(0), 0
    for trial in range(300):
        sample = rng.exponential(size=200)
        resampled = bootstrap(
            lambda w, x=sample: {"mean": w @ x / 200},  # type: ignore[misc]
            200,
            seed=trial,
            resamples=300,
        )["mean"]
        low, high = compute_percentile_interval(float(sample.mean()), resampled, 0.9)
        held += low <= 1 <= high
    assert 0.85 <= held / 300 <= 0.94


@settings(max_examples=50)
@given(
    point=st.floats(0, 2),
    resampled=st.lists(st.floats(0, 2), min_size=1, max_size=50),
    nothing=st.floats(0, 2),
)
def test_every_interval_includes_its_point(
    point: float, resampled: list[float], nothing: float
) -> None:
    draws = np.array([*resampled, 3.0])  # equal values give no interval
    for low, high in (
        compute_percentile_interval(point, draws, 0.95),
        reflect_interval(point, draws, np.full(len(draws), nothing), 0.95),
    ):
        assert low <= point <= high


def test_a_reflected_interval_is_mirrored_at_the_point() -> None:
    low, high = reflect_interval(0.02, np.linspace(0.015, 0.035, 101), np.full(101, 0.01), 0.9)
    assert low == pytest.approx(0.04 - 0.034)
    assert high == pytest.approx(0.04 - 0.016)


def test_a_reflected_interval_begins_at_0_if_chance_explains_the_point() -> None:
    assert reflect_interval(0.02, np.linspace(0.015, 0.035, 101), np.full(101, 0.025), 0.9)[0] == 0


def test_undefined_resamples_are_ignored_and_the_interval_is_nan_without_others() -> None:
    assert compute_percentile_interval(1.0, np.array([0.5, np.nan, 1.5]), 0.5) == (0.75, 1.25)
    assert np.isnan(compute_percentile_interval(np.nan, np.full(3, np.nan), 0.5)).all()


def test_recalls_are_nan_for_classes_without_draws() -> None:
    target, hits = np.array([0, 0, 2, 2, 2]), np.array([True, False, True, True, False])
    recalls = compute_recalls(
        np.array([[1.0, 1, 1, 1, 1], [3, 1, 0, 0, 1], [0, 0, 1, 1, 3]]),
        hits,
        find_class_starts(target),
    )
    np.testing.assert_allclose(recalls, [[0.5, 2 / 3], [0.75, 0], [np.nan, 0.4]])
