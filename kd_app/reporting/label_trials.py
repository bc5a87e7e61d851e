"""The table of trainings on shares of the labels."""

from collections.abc import Sequence
from typing import NamedTuple

from kd_app.reporting.markdown import to_table
from kd_app.reporting.metrics import Estimate


class TrialResult(NamedTuple):
    """Top-1 accuracy of a training that began with the weights `start`, on a `fraction`
    of the labels, with its interval over the test images.
    """

    start: str
    fraction: float
    top1: Estimate


def write_trials_table(results: Sequence[TrialResult]) -> str:
    """Return a table in Markdown: a row for each start, a column for each fraction, in
    %.
    """
    fractions = list(dict.fromkeys(each.fraction for each in results))
    rows = [["start", *(f"{100 * fraction:g} % of the labels" for fraction in fractions)]]
    rows.append(["---"] * len(rows[0]))
    for start in dict.fromkeys(each.start for each in results):
        cells = {each.fraction: _format(each) for each in results if each.start == start}
        rows.append([start, *(cells.get(fraction, "") for fraction in fractions)])
    return to_table(rows)


def _format(result: TrialResult) -> str:
    value, low, high = result.top1.value, result.top1.low, result.top1.high
    if value is None:
        return ""
    bounds = "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"
    return f"{100 * value:.1f}{bounds}"
