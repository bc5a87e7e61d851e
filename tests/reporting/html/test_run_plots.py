from types import SimpleNamespace
from typing import cast

import pytest

from kd_app.reporting.html.plots import plot_curves
from kd_app.reporting.html.schema import Curve, RunPart


@pytest.mark.parametrize(
    ("count", "shown", "title"),
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
def test_of_any_number_of_terms_five_are_drawn_beside_the_loss_and_the_title_says_so(
    count: int, shown: list[str], title: str
) -> None:
    metrics = [*(f"train/a{number}" for number in range(count)), "train/loss", "train/lr"]
    found = [
        Curve(role="student", metric=metric, epochs=[0.0, 1.0], values=[2.0, 1.0])
        for metric in metrics
    ]
    (chart,) = plot_curves(cast(RunPart, SimpleNamespace(curves=found)))
    assert chart.title == title
    assert [name for _, name in chart.legend] == shown
