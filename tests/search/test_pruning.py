"""Early end of hopeless trials."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kd_app.reporting.runs import write_curves
from kd_app.search.pruning import MedianPruner, TrialPruned
from kd_app.search.trials import find_selected


def points(values: list[float]) -> list[dict[str, float]]:
    return [
        {"epoch": float(epoch), "step": float(epoch), "validation/top1": value}
        for epoch, value in enumerate(values)
    ]


@pytest.fixture
def others(tmp_path: Path) -> Callable[[int], Path]:
    def write_others(number: int) -> Path:
        for other in range(number):
            (tmp_path / str(other)).mkdir()
            write_curves(
                tmp_path / str(other) / "metrics.csv",
                {"teacher": points([0.1] * 4), "student": points([0.5, 0.6, 0.7, 0.8])},
            )
        return tmp_path

    return write_others


def find_pruned_epoch(sweep: Path, values: list[float]) -> int | None:
    """The epoch after which a trial with this curve is pruned; None if never."""
    watch = MedianPruner(sweep, 99)
    for row in points(values):
        try:
            watch(row, int(row["step"]))
            watch({"train/loss": 1.0, "epoch": row["epoch"]}, int(row["step"]))
        except TrialPruned:
            return int(row["epoch"])
    return None


def test_a_bad_trial_is_pruned_and_a_good_one_is_not(others: Callable[[int], Path]) -> None:
    sweep = others(4)
    assert find_pruned_epoch(sweep, [0.1, 0.2, 0.3, 0.4]) == 1
    assert find_pruned_epoch(sweep, [0.1, 0.7, 0.75, 0.9]) is None
    assert find_pruned_epoch(sweep, [0.5, 0.61, 0.62, 0.63]) == 2


def test_an_embedding_is_followed_by_its_overlap() -> None:
    row = {"epoch": 1, "train/loss": 0.1, "validation/top1": "", "validation/overlap": "0.3"}
    assert find_selected(row) == "validation/overlap"
    assert find_selected({"validation/top1": 0.0}) == "validation/top1"
    assert find_selected({"train/loss": 0.1}) is None


def test_with_few_other_trials_no_trial_is_pruned(others: Callable[[int], Path]) -> None:
    assert find_pruned_epoch(others(3), [0.0, 0.0, 0.0, 0.0]) is None
