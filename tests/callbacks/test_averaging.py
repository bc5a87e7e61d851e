"""The moving average of the weights in short and long trainings."""

import math

import pytest

from kd_app.callbacks.averaging import EMA, warm_up_decay


def compute_first_share(decay: float, steps: int) -> float:
    """The share of the first weights in the average after `steps`."""
    return math.prod(warm_up_decay(decay, step) for step in range(1, steps))


@pytest.mark.parametrize("steps", [10, 20, 200, 20_000])
def test_a_training_of_any_length_forgets_its_first_weights(steps: int) -> None:
    """Trap 15: with a constant decay of 0.999, 82 % after 200 steps."""
    assert compute_first_share(0.999, steps) < 1e-3


def test_the_decay_rises_to_its_value() -> None:
    decays = [warm_up_decay(0.999, step) for step in (1, 100, 8_990, 100_000)]
    assert decays == [pytest.approx(2 / 11), pytest.approx(101 / 110), 0.999, 0.999]
    assert warm_up_decay(0.05, 1) == 0.05


@pytest.mark.parametrize(("decay", "steps"), [(0.999, 8_990), (0.9, 80), (0.05, 0)])
def test_the_steps_that_a_decay_needs(decay: float, steps: int) -> None:
    (need,) = EMA(decay=decay).list_length_needs()
    assert need.unit == "steps"
    assert need.least == pytest.approx(steps, abs=1)
    assert warm_up_decay(decay, int(need.least)) == pytest.approx(decay)
