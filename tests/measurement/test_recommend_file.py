"""The recommended file, from a manifest."""

from typing import Any

import pytest

from kd_app.measurement.recommend_file import list_remarks, recommend_file
from kd_app.reporting.exports import Exports


def file(
    format: str,
    *,
    high: float = 0.0,
    lost: float = 0.0,
    test: float | None = None,
    cost: float | None,
    role: str = "student",
) -> dict[str, Any]:
    def compare(lost: float) -> dict[str, Any]:
        comparison = {"lost": lost, "lost_high": high, "margin": 0.01, "agreement": 0.9}
        return {"beside_torch": comparison}

    return {
        "format": format,
        "size_bytes": 1,
        "role": role,
        "validation": compare(lost),
        "test": None if test is None else compare(test),
        "cost_per_million": cost,
    }


def exports(**files: dict[str, Any]) -> Exports:
    return Exports.model_validate({"schema_version": 1, "files": files})


def test_the_cheapest_file_that_is_shown_to_keep_the_margin_is_recommended() -> None:
    recommendation = recommend_file(
        exports(
            good=file("onnx", high=0.002, cost=3.0),
            cheap=file("onnx_int8", high=0.009, lost=0.002, test=0.0362, cost=1.0),
            unsure=file("executorch_int8", high=0.02, lost=0.007, cost=0.5),
            teacher=file("onnx", high=0.0, cost=0.1, role="teacher"),
        )
    )
    assert recommendation.file == "cheap"
    assert recommendation.reasons == (
        "Ship cheap: it is the cheapest of the files that are shown on validation to lose at most"
        " 1 point compared with the student in torch (+0.90 points). On test it lost +3.62"
        " points.",
    )


def test_a_file_without_a_cost_is_the_most_expensive() -> None:
    files = exports(
        unknown=file("onnx", high=0.0, cost=None), known=file("executorch", high=0.005, cost=9.0)
    )
    assert recommend_file(files).file == "known"


def test_if_no_file_is_shown_to_keep_the_margin_the_smallest_bound_decides() -> None:
    recommendation = recommend_file(
        exports(
            a=file("onnx", high=0.021, cost=3.0),
            b=file("executorch", high=0.021, cost=2.0),
            c=file("onnx_int8", high=0.033, lost=0.007, cost=1.0),
        )
    )
    assert recommendation.file == "b"
    assert "no file is shown on validation to lose at most 1 point" in recommendation.reasons[0]
    assert recommendation.reasons[0].endswith("On validation it lost +0.00 points.")


def test_without_a_student_the_teachers_files_count() -> None:
    assert recommend_file(exports(t=file("onnx", cost=1.0, role="teacher"))).file == "t"


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
