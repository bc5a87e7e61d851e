"""Class maps: sum a teacher's class probabilities into the classes of the data."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kd_app.config import RequestError, build_unknown_error
from kd_app.config.errors import list_some, quote_some
from kd_app.config.table import read_table
from kd_app.models.class_names import ModelClasses

_COLUMNS = ("teacher", "class")
_EXPECTED = (
    "Expected a CSV file with the columns teacher,class and one row for each class of the teacher"
    " that is mapped."
)


class ClassMap:
    """A CSV file with the columns ``teacher`` (a class of the teacher: a name, or a
    number from 0) and ``class`` (a class of the data).

    Of two columns with other names, the one that holds nothing but classes of the data
    is ``class``. The mapping is many-to-many. Classes of the teacher without a row are
    ignored. Raises `RequestError` if the file is missing, unreadable or has no rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._table = read_table(path, _COLUMNS)
        except RequestError as error:
            raise RequestError(f"The class map {error} {_EXPECTED}") from None
        if not self._table.rows or len(self._table.columns) < len(_COLUMNS):
            raise self._build_column_error()

    def _build_column_error(self) -> RequestError:
        return RequestError(
            f"The class map {str(self.path)!r} has the columns"
            f" {list_some(self._table.columns) or 'none'} and {len(self._table.rows)} rows."
            f" {_EXPECTED}"
        )

    def _read_rows(self, classes: Collection[str]) -> Iterator[tuple[int, str, str]]:
        """Yield number, class of the teacher and class of the data of each row."""
        places = [self._table.find_column(name) for name in _COLUMNS]
        if None in places:
            places = [*self._find_unnamed(classes)]
        cells = [self._table.list_cells(place) for place in places if place is not None]
        numbers = [row.number for row in self._table.rows]
        yield from zip(numbers, *cells, strict=True)

    def _find_unnamed(self, classes: Collection[str]) -> tuple[int, int]:
        """Return the positions of two columns; the second holds the data's classes."""
        columns = self._table.columns
        suitable = [place for place in (0, 1) if set(self._table.list_cells(place)) <= {*classes}]
        if len(columns) != len(_COLUMNS) or len(suitable) != 1:
            raise self._build_column_error()
        (place,) = suitable
        if columns[place] in classes:
            raise RequestError(
                f"The class map {str(self.path)!r} has no header: its first row is"
                f" {', '.join(columns)}. {_EXPECTED} Add a first row with the names of the columns."
            )
        return 1 - place, place

    def map_rows(self, classes: Sequence[str], teacher: ModelClasses) -> list[list[int]]:
        """Return, for each class of the data in the order of `classes`, the sorted
        class numbers of the teacher that map to the class.

        Raises `RequestError` for an unknown class, and for a class of the data without
        a row.
        """
        numbers_of: dict[str, set[int]] = {name: set() for name in classes}
        assert teacher.count is not None
        names = {name: number for number, name in enumerate(teacher.names)}
        for line, teacher_class, data_class in self._read_rows(numbers_of):
            if data_class not in numbers_of:
                error = build_unknown_error("class of the data", data_class, list(classes))
                raise RequestError(f"{self.path}, row {line}: {error}")
            numbers_of[data_class].add(self._find_number(teacher_class, line, names, teacher.count))
        missing = [name for name, numbers in numbers_of.items() if not numbers]
        if missing:
            raise RequestError(
                f"The class map {str(self.path)!r} has no row for {len(missing)} of the data's"
                f" {len(numbers_of)} classes ({quote_some(missing)}). Every"
                " class needs at least one row."
            )
        return [sorted(numbers) for numbers in numbers_of.values()]

    def _find_number(self, teacher_class: str, line: int, names: dict[str, int], count: int) -> int:
        if teacher_class in names:
            return names[teacher_class]
        if teacher_class.isdecimal() and int(teacher_class) < count:
            return int(teacher_class)
        if names and not teacher_class.isdecimal():
            error = build_unknown_error("class of the teacher", teacher_class, list(names))
            raise RequestError(f"{self.path}, row {line}: {error}")
        raise RequestError(
            f"{self.path}, row {line}: teacher={teacher_class!r} is none of the teacher's {count}"
            f" classes. Expected {'a class name, or ' if names else ''}a number from 0 to"
            f" {count - 1}."
        )


class ClassMapLayer(nn.Module):
    """``y_k = log sum_{j in rows[k]} exp(z_j)``: softmax(y) is the sum of the teacher's
    probabilities, renormalized over the mapped classes.
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
        """Return logits ``[B, K]`` of the data's classes."""
        padded = torch.cat([logits, logits.new_full((len(logits), 1), float("-inf"))], dim=1)
        return padded[:, self.numbers].logsumexp(dim=-1)


class ClassMappedModel(nn.Module):
    """A model followed by a `ClassMapLayer`."""

    def __init__(self, inner: nn.Module, rows: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.inner = inner
        self.mapping = ClassMapLayer(rows)
        self.eval()

    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return logits ``[B, K]`` of the data's classes."""
        mapped: Tensor = self.mapping(self.inner(image))
        return mapped
