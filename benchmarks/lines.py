"""Lines of a CSV file that are values of a dataclass."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")


def read_lines(kind: type[T], file: Path) -> list[T]:
    """The lines of the file; none if it is missing."""
    if not file.is_file():
        return []
    types = get_type_hints(kind)
    with file.open(encoding="utf-8", newline="") as content:
        return [
            kind(**{name: types[name](value) for name, value in row.items()})
            for row in csv.DictReader(content)
        ]


def write_lines(lines: Sequence[Any], file: Path) -> None:
    """Write at least one line, all of one dataclass."""
    with file.open("w", encoding="utf-8", newline="") as content:
        names = [field.name for field in fields(lines[0])]
        writer = csv.DictWriter(content, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, lines))


def round_value(value: float | None) -> float:
    """Five digits are enough for a share; NaN if there is no value."""
    return float("nan") if value is None else round(value, 5)
