"""The table of trainings on shares of the labels."""

from kd_app.reporting.label_trials import TrialResult, write_trials_table
from kd_app.reporting.metrics import Estimate


def test_starts_are_rows_and_shares_of_the_labels_columns() -> None:
    accuracy = Estimate(value=0.5, low=0.41, high=0.592)
    table = write_trials_table(
        [
            TrialResult("distilled", 0.01, accuracy),
            TrialResult("distilled", 1.0, Estimate(value=0.75)),
            TrialResult("random", 1.0, Estimate(value=None)),
        ]
    )
    assert table.splitlines() == [
        "| start | 1 % of the labels | 100 % of the labels |",
        "| --- | --- | --- |",
        "| distilled | 50.0 (41.0 to 59.2) | 75.0 |",
        "| random |  |  |",
    ]
