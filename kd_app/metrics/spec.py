"""What a metric is called, how it reads and where it is shown."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from kd_app.metrics.measure import Measure

Subject = TypeVar("Subject")
Format = Literal["percent", "points", "plain"]
"""percent: a share of 1 · points: a difference of shares, in percentage points."""
Place = Literal["console", "card", "page"]
EVERYWHERE: frozenset[Place] = frozenset({"console", "card", "page"})


@dataclass(frozen=True)
class MetricSpec(Generic[Subject]):
    """A metric of one model, or of a comparison: all that results.json, tables, page,
    card and trackers know of it.

    A new metric is a function in a file of its own and a row in `MODEL_METRICS` or
    `PAIR_METRICS`.

    name: the key in results.json, beside ``<name>_low`` and ``<name>_high`` · label: in
    tables · compute: from a record, or a comparison of records · meaning: a few words
    for tables that explain · hub: its metric type in the Hugging Face hub's model index
    · needs: roles that must have been measured beside the student · undefined: why
    there is no value, where that is worth a sentence · required: a results.json without
    it is refused; a metric that came later is null in older ones.
    """

    name: str
    label: str
    better: Literal["higher", "lower"]
    format: Format
    compute: Callable[[Subject], Measure]
    shown: frozenset[Place] = frozenset({"page"})
    meaning: str = ""
    hub: str | None = None
    needs: tuple[str, ...] = ()
    undefined: str = ""
    required: bool = False
