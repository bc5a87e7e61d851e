"""A teacher of other classes: whose probabilities are summed into the data's classes."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kd_app.config import RequestError, build_unknown_error

_COLUMNS = ("teacher", "class")
_SHOWN = 5


@dataclass(frozen=True)
class KnownClasses:
    """How many classes a model answers in, and their names where it says them."""

    count: int
    names: tuple[str, ...]


class ClassMap:
    """A CSV file with the columns ``teacher`` (a class of the teacher: its name, or its
    number from 0) and ``class`` (one of the data's).

    Several of the teacher's may be one of the data's, and one of the teacher's several
    of the data's; those that no row names are left out. Raises `RequestError` for a
    file that is not there or has other columns.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file)
                self._columns = tuple(reader.fieldnames or ())
                self._lines = [
                    (
                        reader.line_num,
                        (row.get("teacher") or "").strip(),
                        (row.get("class") or "").strip(),
                    )
                    for row in reader
                ]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise RequestError(
                f"The class map {str(path)!r} can't be read ({error}). {_EXPECTED}"
            ) from None
        if not set(_COLUMNS) <= set(self._columns) or not self._lines:
            raise RequestError(
                f"The class map {str(path)!r} has the columns {', '.join(self._columns) or 'none'}"
                f" and {len(self._lines)} rows. {_EXPECTED}"
            )

    def map_rows(self, classes: Sequence[str], teacher: KnownClasses) -> list[list[int]]:
        """For each of the data's `classes` the numbers of the teacher's that it is made
        of.
        """
        found: dict[str, set[int]] = {name: set() for name in classes}
        names = {name: number for number, name in enumerate(teacher.names)}
        for line, theirs, ours in self._lines:
            if ours not in found:
                raise RequestError(
                    f"{self.path}, line {line}: {build_unknown_error('class of the data', ours, list(classes))}"
                )
            found[ours].add(self._number(theirs, line, names, teacher.count))
        missing = [name for name, numbers in found.items() if not numbers]
        if missing:
            raise RequestError(
                f"The class map {str(self.path)!r} has no row for {len(missing)} of the data's"
                f" {len(found)} classes ({', '.join(map(repr, missing[:_SHOWN]))}). Every class"
                " needs at least one of the teacher's."
            )
        return [sorted(numbers) for numbers in found.values()]

    def _number(self, theirs: str, line: int, names: dict[str, int], count: int) -> int:
        if theirs in names:
            return names[theirs]
        if theirs.isdecimal() and int(theirs) < count:
            return int(theirs)
        if names and not theirs.isdecimal():
            raise RequestError(
                f"{self.path}, line {line}: {build_unknown_error('class of the teacher', theirs, list(names))}"
            )
        raise RequestError(
            f"{self.path}, line {line}: teacher={theirs!r} is none of the teacher's {count}"
            f" classes. Expected {'one of their names, or ' if names else ''}a number from 0 to"
            f" {count - 1}."
        )


_EXPECTED = (
    "Expected a CSV file with the columns teacher,class and a row for each class of the teacher"
    " that counts."
)


class SummedClasses(nn.Module):
    """``y_k = log sum_{j in rows[k]} exp(z_j)``: the softmax of y is the sum of the
    probabilities, among the classes that some row names.
    """

    numbers: Tensor

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        super().__init__()
        width = max(map(len, rows))
        self.register_buffer(
            "numbers",
            torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows]),
            persistent=False,
        )

    def forward(self, logits: Float[Tensor, "batch theirs"]) -> Float[Tensor, "batch classes"]:
        """Logits ``[B, K]`` of the data's classes."""
        padded = torch.cat([logits, logits.new_full((len(logits), 1), float("-inf"))], dim=1)
        return padded[:, self.numbers].logsumexp(dim=-1)


class Mapped(nn.Module):
    """A model with a `SummedClasses` behind its logits."""

    def __init__(self, inner: nn.Module, rows: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.inner, self.mapping = inner, SummedClasses(rows)
        self.eval()

    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Logits ``[B, K]`` of the data's classes."""
        mapped: Tensor = self.mapping(self.inner(image))
        return mapped
