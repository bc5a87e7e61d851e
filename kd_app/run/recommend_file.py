"""Which file to ship, chosen by what was measured, and what int8 did that nobody would
want.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from kd_app.reporting.exports import BesideTorch, Exports, File
from kd_app.reporting.sentences import format_points

_FLOAT = {"onnx_int8": "onnx", "executorch_int8": "executorch"}
"""The float format of the same runtime."""


@dataclass(frozen=True)
class Recommendation:
    """The file to ship, None where there is none, and why."""

    file: str | None
    says: tuple[str, ...]


def to_ship(told: Exports) -> Recommendation:
    """Of the student's files (the teacher's, where there are none of a student) the
    cheapest whose loss beside the model in torch is within ``verdict.margin`` on
    validation; where none is, the one that lost least.
    """
    roles = {file.role for file in told.files.values()}
    role = "student" if "student" in roles else "teacher"
    files = {name: file for name, file in told.files.items() if file.role == role}
    margin = _find_margin(files)
    within = [name for name, file in files.items() if compute_lost_accuracy(file) <= margin]
    if not within:
        least = min(files, key=lambda name: compute_lost_accuracy(files[name]))
        return Recommendation(
            least,
            (f"Ship {least}: every file lost more than the margin of {100 * margin:g} points beside the {role} in torch, this one least "
             f"({_format_points(files[least])} on validation).",),
        )  # fmt: skip
    chosen = min(
        within, key=lambda name: (_read_cost(files[name]), compute_lost_accuracy(files[name]))
    )
    file = files[chosen]
    return Recommendation(
        chosen,
        (f"Ship {chosen}: of the files that lost at most {100 * margin:g} points beside the {role} in torch on validation (this one "
         f"{_format_points(file)}) it costs least.",),
    )  # fmt: skip


def list_remarks(told: Exports) -> Iterator[str]:
    """A sentence for each int8 file that is slower, or worse, than the float one of its
    runtime.
    """
    by = {(file.role, file.format): name for name, file in told.files.items()}
    for name, file in told.files.items():
        other = by.get((file.role, _FLOAT.get(file.format, "")))
        if other is None:
            continue
        ratio = file.times_cheaper[other]
        if ratio.high < 1:
            yield (
                f"{name} is slower than {other}: {ratio.value:.2f} times as many images a second"
                f" ({ratio.low:.2f} to {ratio.high:.2f})."
            )
        elif ratio.low <= 1:
            yield (
                f"{name} is not shown to be faster than {other}: {ratio.value:.2f} times"
                f" ({ratio.low:.2f} to {ratio.high:.2f})."
            )
        if compute_lost_accuracy(file) > _find_margin(told.files) and compute_lost_accuracy(
            file
        ) > compute_lost_accuracy(told.files[other]):
            yield (
                f"{name} is worse than {other}: it lost {_format_points(file)} on validation, {other}"
                f" {_format_points(told.files[other])}."
            )


def compute_lost_accuracy(file: File) -> float:
    """Accuracy on validation that the model in torch has and the file has not, in 0..1."""
    return _compare_with_torch(file).lost


def _format_points(file: File) -> str:
    return f"{format_points(compute_lost_accuracy(file))} points"


def _find_margin(files: dict[str, File]) -> float:
    return _compare_with_torch(next(iter(files.values()))).margin


def _compare_with_torch(file: File) -> BesideTorch:
    assert file.validation is not None
    assert file.validation.beside_torch is not None
    return file.validation.beside_torch


def _read_cost(file: File) -> float:
    return float("inf") if file.cost_per_million is None else file.cost_per_million
