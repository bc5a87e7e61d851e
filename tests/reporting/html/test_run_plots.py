from types import SimpleNamespace
from typing import cast

import pytest

from kd_app.reporting.html.run_plots import plot_curves
from kd_app.reporting.html.schema import Curve, RunPart


@pytest.mark.parametrize(
    ("count", "names", "title"),
    [
        (2, ["loss", "a0", "a1"], "The student's training loss"),
        (5, ["loss", "a0", "a1", "a2", "a3", "a4"], "The student's training loss"),
        (
            9,
            ["loss", "a0", "a1", "a2", "a3", "a4"],
            "The student's training loss and 5 of its 9 terms",
        ),
    ],
)
def test_at_most_five_loss_terms_are_drawn_and_the_title_counts_the_rest(
    count: int, names: list[str], title: str
) -> None:
    metrics = [*(f"train/a{number}" for number in range(count)), "train/loss", "train/lr"]
    curves = [
        Curve(role="student", metric=metric, epochs=[0.0, 1.0], values=[2.0, 1.0])
        for metric in metrics
    ]
    (chart,) = plot_curves(cast(RunPart, SimpleNamespace(curves=curves)))
    assert chart.title == title
    assert [name for _, name in chart.legend] == names
