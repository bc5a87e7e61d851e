"""Recommend which exported file to ship, from the measurements, and warn about int8
files that are slower or less accurate than float.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from kd_app.reporting.exports import Exports, File, TorchComparison
from kd_app.reporting.sentences import format_margin, format_points

_FLOAT_FORMATS = {"onnx_int8": "onnx", "executorch_int8": "executorch"}
"""The float format of the same runtime."""


@dataclass(frozen=True)
class Recommendation:
    """The file to ship, and the reasons as sentences."""

    file: str | None
    reasons: tuple[str, ...]


def recommend_file(exports: Exports) -> Recommendation:
    """The cheapest of the student's files (without a student, of the teacher's files)
    that is shown on validation to lose at most ``verdict.margin`` compared with the
    model in torch: the upper bound of its loss is within the margin.

    If no file is shown to, the file with the smallest upper bound.
    """
    roles = {file.role for file in exports.files.values()}
    role = "student" if "student" in roles else "teacher"
    files = {name: file for name, file in exports.files.items() if file.role == role}
    margin = _find_margin(files)
    within = [name for name, file in files.items() if _bound_loss(file) <= margin]
    if within:
        name = min(within, key=lambda name: (_read_cost(files[name]), _bound_loss(files[name])))
        reason = (
            f"it is the cheapest of the files that are shown on validation to lose at most"
            f" {format_margin(margin)} compared with the {role} in torch"
        )
    else:
        name = min(files, key=lambda name: (_bound_loss(files[name]), _read_cost(files[name])))
        reason = (
            f"no file is shown on validation to lose at most {format_margin(margin)} compared with"
            f" the {role} in torch, and the loss of this file has the smallest upper bound"
        )
    bound = f"{format_points(_bound_loss(files[name]))} points"
    return Recommendation(name, (f"Ship {name}: {reason} ({bound}). {_write_loss(files[name])}",))


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
        (lost, split), (other_lost, _) = _read_loss(file), _read_loss(exports.files[other])
        if lost > margin and lost > other_lost:
            yield (
                f"{name} is less accurate than {other}: it lost {format_points(lost)} points on"
                f" {split}, {other} lost {format_points(other_lost)} points."
            )


def _write_loss(file: File) -> str:
    lost, split = _read_loss(file)
    return f"On {split} it lost {format_points(lost)} points."


def _read_loss(file: File) -> tuple[float, str]:
    """Accuracy of the model in torch minus that of the file (0..1), on test, which no
    choice has seen, or on validation if test was not read; and the split.
    """
    if file.test is not None and file.test.beside_torch is not None:
        return file.test.beside_torch.lost, "test"
    return _compare_on_validation(file).lost, "validation"


def _bound_loss(file: File) -> float:
    return _compare_on_validation(file).lost_high


def _find_margin(files: dict[str, File]) -> float:
    return _compare_on_validation(next(iter(files.values()))).margin


def _compare_on_validation(file: File) -> TorchComparison:
    assert file.validation is not None
    assert file.validation.beside_torch is not None
    return file.validation.beside_torch


def _read_cost(file: File) -> float:
    return float("inf") if file.cost_per_million is None else file.cost_per_million
