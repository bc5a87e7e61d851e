"""A setting that needs a longer training than there is."""

import math

import pytest

from kd_app.config.length import LengthNeed, TrainingLength, Unit, describe_shortage

LENGTH = TrainingLength(steps=200, epochs=10, batches=20)


@pytest.mark.parametrize(
    ("least", "unit", "message"),
    [
        (201, "steps", "x=1 needs at least 201 steps, but the training has 200: it is lost. Fix."),
        (11, "epochs", "needs at least 11 epochs, but the training has 10"),
        (21, "batches", "needs at least 21 batches, but an epoch has 20"),
        (math.inf, "steps", "needs more steps, but the training has 200"),
    ],
)
def test_a_shortage_names_setting_need_and_length(least: float, unit: Unit, message: str) -> None:
    sentence = describe_shortage(LengthNeed("x=1", least, unit, "it is lost", "Fix"), LENGTH)
    assert sentence is not None
    assert message in sentence
    enough = getattr(LENGTH, unit)
    assert describe_shortage(LengthNeed("x=1", enough, unit, "", ""), LENGTH) is None
