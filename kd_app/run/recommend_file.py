"""Recommend which exported file to ship, from the measurements, and warn about int8
files that are slower or less accurate than float.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from kd_app.reporting.exports import Exports, File, TorchComparison
from kd_app.reporting.sentences import format_points

_FLOAT_FORMATS = {"onnx_int8": "onnx", "executorch_int8": "executorch"}
"""The float format of the same runtime."""


@dataclass(frozen=True)
class Recommendation:
    """The file to ship, and the reasons as sentences."""

    file: str | None
    reasons: tuple[str, ...]


def recommend_file(exports: Exports) -> Recommendation:
    """The cheapest of the student's files (without a student, of the teacher's files)
    that lost at most ``verdict.margin`` on validation compared with the model in torch.

    If all files lost more, the file that lost least.
    """
    roles = {file.role for file in exports.files.values()}
    role = "student" if "student" in roles else "teacher"
    files = {name: file for name, file in exports.files.items() if file.role == role}
    margin = _find_margin(files)
    within = [name for name, file in files.items() if compute_lost_accuracy(file) <= margin]
    if not within:
        least = min(files, key=lambda name: compute_lost_accuracy(files[name]))
        reason = (
            f"Ship {least}: every file lost more than the margin of {100 * margin:g} points"
            f" compared with the {role} in torch; this file lost least"
            f" ({_format_points(files[least])} on validation)."
        )
        return Recommendation(least, (reason,))
    cheapest = min(
        within, key=lambda name: (_read_cost(files[name]), compute_lost_accuracy(files[name]))
    )
    reason = (
        f"Ship {cheapest}: it is the cheapest of the files that lost at most {100 * margin:g}"
        f" points compared with the {role} in torch on validation (it lost"
        f" {_format_points(files[cheapest])})."
    )
    return Recommendation(cheapest, (reason,))


def list_remarks(exports: Exports) -> Iterator[str]:
    """A sentence for each int8 file that is slower or less accurate than the float file
    of the same runtime.
    """
    names = {(file.role, file.format): name for name, file in exports.files.items()}
    margin = _find_margin(exports.files)
    for name, file in exports.files.items():
        other = names.get((file.role, _FLOAT_FORMATS.get(file.format, "")))
        if other is None:
            continue
        ratio = file.times_cheaper[other]
        speed = f"{ratio.value:.2f} times ({ratio.low:.2f} to {ratio.high:.2f}) as many images"
        if ratio.high < 1:
            yield f"{name} is slower than {other}: {speed} a second."
        elif ratio.low <= 1:
            yield f"{name} is not measurably faster than {other}: {speed} a second."
        lost = compute_lost_accuracy(file)
        if lost > margin and lost > compute_lost_accuracy(exports.files[other]):
            yield (
                f"{name} is less accurate than {other}: it lost {_format_points(file)} on"
                f" validation, {other} lost {_format_points(exports.files[other])}."
            )


def compute_lost_accuracy(file: File) -> float:
    """Validation accuracy of the model in torch minus that of the file (0..1)."""
    return _compare_with_torch(file).lost


def _format_points(file: File) -> str:
    return f"{format_points(compute_lost_accuracy(file))} points"


def _find_margin(files: dict[str, File]) -> float:
    return _compare_with_torch(next(iter(files.values()))).margin


def _compare_with_torch(file: File) -> TorchComparison:
    assert file.validation is not None
    assert file.validation.beside_torch is not None
    return file.validation.beside_torch


def _read_cost(file: File) -> float:
    return float("inf") if file.cost_per_million is None else file.cost_per_million
