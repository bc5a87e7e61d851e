import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import t, ttest_rel

from kd_app.metrics.seeds import (
    SeedDifference,
    compare_by_seed,
    correct_for_multiplicity,
    summarize_seeds,
)

THREE = {0: 0.91, 1: 0.93, 2: 0.95}


def test_the_interval_over_seeds_equals_students_on_the_logit_scale() -> None:
    result = summarize_seeds(THREE, 0.9)
    half = t.ppf(0.95, 2) * 0.02 / np.sqrt(3) / (0.93 * 0.07)
    assert (result.mean, result.deviation) == pytest.approx((0.93, 0.02))
    assert (result.low, result.high) == pytest.approx(
        expit([logit(0.93) - half, logit(0.93) + half])
    )
    assert result.values == THREE


def test_one_seed_has_no_interval_and_two_have_a_wide_one() -> None:
    one, two = summarize_seeds({4: 0.9}, 0.95), summarize_seeds({4: 0.9, 5: 0.92}, 0.95)
    assert (one.mean, one.deviation, one.low, one.high) == (0.9, None, None, None)
    assert two.low is not None
    assert two.high is not None
    half = t.ppf(0.975, 1) * 0.01 / (0.91 * 0.09)
    assert logit(two.high) - logit(two.low) == pytest.approx(2 * half)


@pytest.mark.parametrize(("first", "second"), [(0.8392, 0.9300), (1.0, 0.2), (0.0, 1e-6)])
def test_intervals_over_two_seeds_stay_within_0_and_1(first: float, second: float) -> None:
    result = summarize_seeds({0: first, 1: second}, 0.95)
    assert result.low is not None
    assert result.high is not None
    assert 0 <= result.low < result.mean < result.high <= 1
    difference = compare_by_seed({0: 0.9, 1: 0.1}, {0: 0.1, 1: 0.5}, 0.95)
    assert difference is not None
    assert (difference.low, difference.high) == (-1, 1)


def test_equal_values_over_seeds_have_no_interval() -> None:
    assert summarize_seeds({0: 0.9, 1: 0.9, 2: 0.9}, 0.95).low is None
    first, second = (
        {0: 0.3, 1: 0.7, 2: 0.9},
        {
            0: 0.1,
            1: 0.5,
            2: 0.7,
        },
    )  # differences equal but for rounding
    result = compare_by_seed(first, second, 0.95)
    assert result is not None
    assert (result.low, result.high, result.p) == (None, None, None)
    assert result.mean == pytest.approx(0.2)


def test_differences_are_paired_over_common_seeds() -> None:
    result = compare_by_seed({**THREE, 7: 0.1}, {2: 0.94, 1: 0.925, 0: 0.89, 9: 0.8}, 0.95)
    assert result is not None
    assert result.values == pytest.approx({0: 0.02, 1: 0.005, 2: 0.01})
    assert result.p == pytest.approx(ttest_rel([0.91, 0.93, 0.95], [0.89, 0.925, 0.94]).pvalue)
    assert compare_by_seed({0: 0.9}, {1: 0.9}, 0.95) is None


def difference(p: float | None) -> SeedDifference:
    return SeedDifference({0: 0.1, 1: 0.2}, 0.95, 0.15, 0.07, None, None, p, p)


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [  # worked out by hand: the sorted p-values times n, n - 1 ...; running maximum; at most 1
        ((0.03, 0.01, 0.02, 0.5), (0.06, 0.04, 0.06, 0.5)),
        ((0.04, 0.04, 0.04), (0.12, 0.12, 0.12)),
        ((0.6, 0.7), (1, 1)),
        ((0.2, 0.01, 0.01, 0.9, 0.03, 1.0, 0.011), (0.6, 0.07, 0.07, 1, 0.12, 1, 0.07)),
    ],
)
def test_several_differences_are_corrected_by_holms_method(
    p_values: tuple[float, ...], corrected: tuple[float, ...]
) -> None:
    result = correct_for_multiplicity([difference(p) for p in p_values])
    assert [each.corrected for each in result] == pytest.approx(corrected)
    assert {each.compared for each in result} == {len(p_values)}
    assert tuple(each.p for each in result) == p_values


def test_a_difference_without_a_p_value_counts_in_the_correction() -> None:
    result = correct_for_multiplicity([difference(0.02), difference(None)])
    assert (result[0].corrected, result[1].corrected) == (0.04, None)
    assert correct_for_multiplicity([]) == []
