"""The picture of a run for the console."""

from typing import Any

from kd_app.reporting.accuracy_plot import draw_accuracies
from kd_app.reporting.metrics import ModelMetrics, Split


def metrics(top1: float, low: float | None, high: float | None) -> Any:
    build: Any = ModelMetrics.model_construct
    return build(top1=top1, top1_low=low, top1_high=high)


def build_split(**models: Any) -> Any:
    build: Any = Split.model_construct
    return build(confidence=0.95, **models)


def test_points_and_bars_stand_at_their_places_on_the_axis() -> None:
    plot = draw_accuracies(
        build_split(
            teacher=metrics(0.9, 0.8, 1.0),
            labels_only=metrics(0.6, 0.6, 0.7),
            student=metrics(0.8, 0.7, 0.9),
        )
    ).plain.splitlines()
    assert plot[0] == "Top-1 accuracy with 95 % intervals:"
    teacher, alone, student, axis = plot[1:]
    start = len(" labels only  ")
    assert [line.index("o", start) - start for line in (teacher, alone, student)] == [32, 0, 22]
    assert teacher[start : start + 44] == " " * 22 + "-" * 10 + "o" + "-" * 11
    assert teacher.endswith("  90.00 %")
    assert student.startswith(" distilled    ")
    assert axis.split() == ["60", "%", "100", "%"]


def test_without_intervals_there_is_no_picture() -> None:
    assert not draw_accuracies(build_split(student=metrics(0.8, None, None))).plain
