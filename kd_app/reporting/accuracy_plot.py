"""A picture of a run for the console: the accuracy of each model, with its interval."""

import math
from typing import Final

from rich.text import Text

from kd_app.reporting.metrics import ModelMetrics, Split
from kd_app.reporting.sentences import format_percent

_COLUMNS: Final = 44
"""Width of the axis, in characters."""
_NAMES: Final = {"student": "distilled"}


def draw_accuracies(split: Split) -> Text:
    """A line for each model: its top-1 accuracy as a point, its interval as a bar.

    Empty if a model has no interval.
    The axis spans all intervals, rounded outwards to 5 points.
    """
    models = split.by_model
    bounds = [_read_bounds(metrics) for metrics in models.values()]
    if any(each is None for each in bounds):
        return Text()
    known = [each for each in bounds if each is not None]
    low = math.floor(min(each[0] for each in known) * 20) / 20
    high = math.ceil(max(each[2] for each in known) * 20) / 20
    names = [_NAMES.get(role, role.replace("_", " ")) for role in models]
    width = max(map(len, names))
    lines = [
        f" {name:<{width}}  {_draw_bar(each, low, high)}  {format_percent(each[1])}"
        for name, each in zip(names, known, strict=True)
    ]
    axis = f"{100 * low:g} %".ljust(_COLUMNS - 5) + f"{100 * high:g} %".rjust(5)
    title = f"Top-1 accuracy with {100 * split.confidence:g} % intervals:"
    return Text("\n".join([title, *lines, f" {'':<{width}}  {axis}", ""]), no_wrap=True)


def _read_bounds(metrics: ModelMetrics) -> tuple[float, float, float] | None:
    """The interval's lower end, the accuracy, and the upper end."""
    low, value, high = metrics.top1_low, metrics.top1, metrics.top1_high
    return None if low is None or value is None or high is None else (low, value, high)


def _draw_bar(bounds: tuple[float, float, float], low: float, high: float) -> str:
    span = max(high - low, 1e-9)
    start, middle, end = (round((each - low) / span * (_COLUMNS - 1)) for each in bounds)
    bar = (
        "o" if place == middle else "-" if start <= place <= end else " "
        for place in range(_COLUMNS)
    )
    return "".join(bar)
