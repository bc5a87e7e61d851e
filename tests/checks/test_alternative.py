"""When another input of a teacher is better than the configured one."""

import numpy as np

from kd_app.checks.alternative import InputAlternative, compute_p_value
from kd_app.checks.quick import read_limits

LIMITS = read_limits()


def build(before: int, after: int, *, chance: float = 0.0) -> InputAlternative:
    """The teacher is right on the first images of 100."""
    return InputAlternative(
        "x", "y", "z", np.arange(100) < before, np.arange(100) < after, chance=chance
    )


def test_a_clear_gain_is_better_and_a_small_or_a_blind_one_is_not() -> None:
    assert build(10, 90).is_better(LIMITS)
    assert not build(10, 12).is_better(LIMITS)
    assert not build(10, 90, chance=0.9).is_better(LIMITS)
    assert not build(90, 10).is_better(LIMITS)


def test_the_p_value_is_that_of_the_exact_one_sided_test() -> None:
    before, after = np.arange(8) < 2, np.arange(8) < 7
    assert compute_p_value(before, after) == 0.5**5
    assert compute_p_value(before, before) == 1.0
