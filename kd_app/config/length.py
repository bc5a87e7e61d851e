"""The length that a setting needs from a training to have its effect."""

import math
from typing import Literal, NamedTuple

Unit = Literal["steps", "epochs", "batches"]


class LengthNeed(NamedTuple):
    """A setting that makes sense only in a training of at least this length.

    setting: key and value. least: the shortest sensible length in `unit` (optimizer
    steps or epochs of the training, batches of an epoch); infinity: no training is long
    enough. effect: what happens in a shorter training, as a clause. fix: what a user
    can change, as an imperative with a capital letter.
    """

    setting: str
    least: float
    unit: Unit
    effect: str
    fix: str


class TrainingLength(NamedTuple):
    """The length of one training, by the units of a `LengthNeed`."""

    steps: int
    epochs: int
    batches: int


def describe_shortage(need: LengthNeed, length: TrainingLength) -> str | None:
    """A sentence about a setting that needs a longer training; None if the training is
    long enough.
    """
    length_in_unit = getattr(length, need.unit)
    if length_in_unit >= need.least:
        return None
    place = "an epoch has" if need.unit == "batches" else "the training has"
    least = "more" if math.isinf(need.least) else f"at least {need.least:,.0f}"
    return (
        f"{need.setting} needs {least} {need.unit}, but {place} {length_in_unit:,}:"
        f" {need.effect}. {need.fix}."
    )
