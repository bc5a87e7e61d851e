import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from kd_app.metrics.intervals import (
    bootstrap,
    compute_percentile_interval,
    compute_recalls,
    compute_wilson_interval,
    find_class_starts,
    reflect_interval,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), n=st.integers(1, 5000), confidence=st.floats(0.5, 0.999))
def test_wilson_is_scipys(data: st.DataObject, n: int, confidence: float) -> None:
    successes = data.draw(st.integers(0, n))
    expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert compute_wilson_interval(successes, n, confidence) == pytest.approx(
        (expected.low, expected.high), abs=1e-9
    )


@settings(max_examples=200, deadline=None)
@given(data=st.data(), n=st.integers(1, 5000), confidence=st.floats(0.01, 0.999))
def test_wilson_holds_the_rate_and_stays_within_0_and_1(
    data: st.DataObject, n: int, confidence: float
) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = compute_wilson_interval(successes, n, confidence)
    assert 0 <= low <= successes / n <= high <= 1


def test_no_image_says_nothing_about_a_rate() -> None:
    assert compute_wilson_interval(0, 0, 0.95) == (0, 1)


def test_each_resample_draws_as_many_images_as_there_are_and_each_image_about_once_on_average() -> (
    None
):
    drawn = bootstrap(
        lambda w: {"all": w.sum(axis=1), "first": w[:, 0], "square": w[:, 1] ** 2},
        50,
        seed=0,
        resamples=4000,
    )
    assert set(drawn["all"]) == {50}
    assert drawn["first"].mean() == pytest.approx(1, abs=0.05)
    assert drawn["square"].mean() == pytest.approx(1 + 49 / 50, abs=0.15)


def test_equal_seeds_give_equal_draws_however_many_are_held_at_a_time(
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


def test_all_statistics_see_the_same_draws_so_that_equal_models_differ_by_nothing() -> None:
    value = np.random.default_rng(0).random(40)
    drawn = bootstrap(lambda w: {"a": w @ value, "b": w @ value.copy()}, 40, seed=1)
    assert (drawn["a"] == drawn["b"]).all()


def test_the_percentile_interval_of_a_mean_holds_the_truth_as_often_as_it_says() -> None:
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


@settings(max_examples=50, deadline=None)
@given(
    point=st.floats(0, 2),
    resampled=st.lists(st.floats(0, 2), min_size=1, max_size=50),
    nothing=st.floats(0, 2),
)
def test_every_interval_holds_its_point(
    point: float, resampled: list[float], nothing: float
) -> None:
    drawn = np.array(resampled)
    for low, high in (
        compute_percentile_interval(point, drawn, 0.95),
        reflect_interval(point, drawn, np.full(len(drawn), nothing), 0.95),
    ):
        assert low <= point <= high


def test_the_interval_of_a_figure_that_sampling_pushes_up_is_mirrored_at_the_point() -> None:
    low, high = reflect_interval(0.02, np.linspace(0.015, 0.035, 101), np.full(101, 0.01), 0.9)
    assert low == pytest.approx(0.04 - 0.034)
    assert high == pytest.approx(0.04 - 0.016)


def test_it_begins_at_0_where_chance_alone_gives_as_much() -> None:
    assert reflect_interval(0.02, np.linspace(0.015, 0.035, 101), np.full(101, 0.025), 0.9)[0] == 0


def test_resamples_in_which_a_ratio_has_no_value_are_left_out_and_without_any_the_interval_is_nan() -> (
    None
):
    assert compute_percentile_interval(1.0, np.array([0.5, np.nan, 1.5]), 0.5) == (0.75, 1.25)
    assert np.isnan(compute_percentile_interval(np.nan, np.full(3, np.nan), 0.5)).all()


def test_recalls_are_shares_of_each_class_and_nan_where_none_of_it_was_drawn() -> None:
    target, hits = np.array([0, 0, 2, 2, 2]), np.array([True, False, True, True, False])
    found = compute_recalls(
        np.array([[1.0, 1, 1, 1, 1], [3, 1, 0, 0, 1], [0, 0, 1, 1, 3]]),
        hits,
        find_class_starts(target),
    )
    np.testing.assert_allclose(found, [[0.5, 2 / 3], [0.75, 0], [np.nan, 0.4]])
