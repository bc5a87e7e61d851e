"""The recommended file, from a manifest."""

from typing import Any

import pytest

from kd_app.reporting.exports import Exports
from kd_app.run.recommend_file import compute_lost_accuracy, list_remarks, recommend_file


def file(format: str, *, lost: float, cost: float | None, role: str = "student") -> dict[str, Any]:
    comparison = {"lost": lost, "margin": 0.01, "agreement": 0.9}
    return {
        "format": format,
        "size_bytes": 1,
        "role": role,
        "validation": {"beside_torch": comparison},
        "cost_per_million": cost,
    }


def exports(**files: dict[str, Any]) -> Exports:
    return Exports.model_validate({"schema_version": 1, "files": files})


def test_the_cheapest_file_within_the_margin_is_recommended() -> None:
    recommendation = recommend_file(
        exports(
            good=file("onnx", lost=0.001, cost=3.0),
            cheap=file("onnx_int8", lost=0.009, cost=1.0),
            bad=file("executorch_int8", lost=0.2, cost=0.5),
            teacher=file("onnx", lost=0.0, cost=0.1, role="teacher"),
        )
    )
    assert recommendation.file == "cheap"
    assert "cheapest of the files that lost at most 1 points" in recommendation.reasons[0]


def test_a_file_without_a_cost_is_the_most_expensive() -> None:
    files = exports(
        unknown=file("onnx", lost=0.0, cost=None), known=file("executorch", lost=0.005, cost=9.0)
    )
    assert recommend_file(files).file == "known"


def test_if_all_files_lost_too_much_the_one_that_lost_least_is_recommended() -> None:
    recommendation = recommend_file(
        exports(a=file("onnx", lost=0.05, cost=1.0), b=file("onnx_int8", lost=0.04, cost=2.0))
    )
    assert recommendation.file == "b"
    assert "every file lost more than the margin of 1 points" in recommendation.reasons[0]


def test_without_a_student_the_teachers_files_count() -> None:
    files = exports(t=file("onnx", lost=0.0, cost=1.0, role="teacher"))
    assert recommend_file(files).file == "t"
    assert compute_lost_accuracy(files.files["t"]) == 0


@pytest.mark.parametrize(
    ("ratio", "lost", "expected"),
    [
        ((0.5, 0.4, 0.6), 0.0, ["int8 is slower than float"]),
        ((1.0, 0.9, 1.1), 0.0, ["int8 is not measurably faster than float"]),
        ((2.0, 1.9, 2.1), 0.0, []),
        ((2.0, 1.9, 2.1), 0.05, ["int8 is less accurate than float"]),
    ],
)
def test_an_int8_file_is_compared_with_the_float_file_of_its_runtime(
    ratio: tuple[float, float, float], lost: float, expected: list[str]
) -> None:
    int8 = file("onnx_int8", lost=lost, cost=1.0)
    int8["times_cheaper"] = {"float": dict(zip(("value", "low", "high"), ratio, strict=True))}
    remarks = list(list_remarks(exports(float=file("onnx", lost=0.0, cost=2.0), int8=int8)))
    assert len(remarks) == len(expected)
    for remark, text in zip(remarks, expected, strict=True):
        assert text in remark
