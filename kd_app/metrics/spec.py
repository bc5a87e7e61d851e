"""Name, label, format and display places of a metric."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from kd_app.metrics.measure import Measure

Subject = TypeVar("Subject")
Format = Literal["percent", "points", "plain"]
"""percent: a share in 0..1 · points: a difference of shares, in percentage points."""
Place = Literal["console", "card", "page"]
EVERYWHERE: frozenset[Place] = frozenset({"console", "card", "page"})


@dataclass(frozen=True)
class MetricSpec(Generic[Subject]):
    """A metric of one model or of a comparison.

    Results, tables, page, card and trackers read all facts about the metric from this
    object. To add a metric, write a function and add a row to `MODEL_METRICS` or
    `PAIR_METRICS`.

    name: the key in results.json, which also has ``<name>_low`` and ``<name>_high`` ·
    label: the name in tables · compute: builds the measure from a record or a
    comparison of records · places: where the metric is displayed · meaning: a short
    explanation for tables · hub: the metric type in the model index of the Hugging Face
    hub · needs: other roles that must have been measured · undefined: the reason for a
    missing value, as a clause for a sentence · required: loading fails for a
    results.json without the metric; if False, the metric is null in older files ·
    has_interval: whether the metric has an interval, unless no resample differs.
    """

    name: str
    label: str
    better: Literal["higher", "lower"]
    format: Format
    compute: Callable[[Subject], Measure]
    places: frozenset[Place] = frozenset({"page"})
    meaning: str = ""
    hub: str | None = None
    needs: tuple[str, ...] = ()
    undefined: str = ""
    required: bool = False
    has_interval: bool = True
