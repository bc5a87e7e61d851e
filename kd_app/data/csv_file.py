"""Images and labels listed in a CSV file, optionally with splits and groups."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from kd_app.config import RequestError, suggest_closest
from kd_app.data.files import FileSource, require_two_classes, resolve_root
from kd_app.data.layout import SPLIT_WORDS
from kd_app.data.source import Listing

_COLUMNS = ("path", "label", "split", "group")
_REQUIRED = _COLUMNS[:2]
_NAME = "labels.csv"


class _Row(NamedTuple):
    """One image; `number` counts rows as a spreadsheet does: the header is row 1."""

    number: int
    path: str
    label: str
    split: str
    group: str


class CsvFile(FileSource):
    """The images of a CSV file with the columns ``path`` and ``label``.

    Optional columns are ``split`` (train, val, test or empty) and ``group``; others are
    ignored. `root`: the .csv, or the folder with ``labels.csv``. Paths are relative to
    the folder of the .csv and must stay inside that folder, so that the data set can be
    moved; absolute paths into the folder are made relative. The file is UTF-8, with
    comma, semicolon or tab as separator, whichever is most frequent in the header.
    Images keep the order of the rows. Classes are sorted by code point, or numerically
    if all labels are whole numbers.
    """

    def __init__(self, *, root: Path | None, channels: Literal[1, 3]) -> None:
        self.root = root
        self.channels = channels

    def find(self) -> Listing:
        """Read the table.

        Raises `RequestError` with the row number: a missing column, file or label, an
        unknown split, a duplicate path or a path outside the folder.
        """
        file = _find_table(self.root)
        self.base = file.parent
        rows = _read(file)
        _check_files(file, rows)
        labels = [row.label for row in rows]
        whole_numbers = all(label.isdecimal() for label in labels)
        classes = sorted(set(labels), key=lambda label: (int(label) if whole_numbers else 0, label))
        require_two_classes(classes, file)
        return self.build_listing(
            classes,
            [row.path for row in rows],
            labels,
            [row.split for row in rows],
            [row.group for row in rows],
        )


def _find_table(root: Path | None) -> Path:
    path = resolve_root(root)
    if path.is_file():
        return path
    if (path / _NAME).is_file():
        return path / _NAME
    tables = sorted(name for name in os.listdir(path) if name.lower().endswith(".csv"))
    fix = (
        f"Set data.root={path / tables[0]} to read that file."
        if tables
        else f"Add a {_NAME} with the columns path and label, or set data.root to a .csv file."
    )
    raise RequestError(f"The folder {str(path)!r} has no {_NAME}. {fix}")


def _read(file: Path) -> list[_Row]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            header = text.readline()
            text.seek(0)
            reader = csv.reader(text, delimiter=max(",;\t", key=header.count), strict=True)
            places = _find_columns(file, next(reader, []))
            rows = [
                _parse_row(file, number, cells, places)
                for number, cells in enumerate(reader, start=2)
                if any(cells)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(
            f"{str(file)!r} can't be read: {error}. Expected: a CSV file in UTF-8 with the"
            " columns path and label. Save it in that format."
        ) from error
    if not rows:
        raise RequestError(
            f"{str(file)!r} has a header but no rows. Expected: one row per image, with path and"
            " label. Add the rows."
        )
    return rows


def _find_columns(file: Path, header: Sequence[str]) -> dict[str, int]:
    """Return column name -> position. Raises `RequestError` without path or label."""
    names = [name.strip().lower() for name in header]
    for column in _REQUIRED:
        if names.count(column) != 1:
            wrong = "twice" if column in names else "missing"
            near = "" if column in names else suggest_closest(column, names)
            raise RequestError(
                f"The column {column!r} of {str(file)!r} is {wrong}; its header has:"
                f" {', '.join(names) or 'nothing'}. {near}Expected: path and label, and optionally"
                " split and group."
            )
    return {column: names.index(column) for column in _COLUMNS if column in names}


def _parse_row(file: Path, number: int, cells: Sequence[str], places: dict[str, int]) -> _Row:
    values = {
        column: cells[place].strip() if place < len(cells) else ""
        for column, place in places.items()
    }
    for column in _REQUIRED:
        if not values[column]:
            raise RequestError(
                f"Row {number} of {str(file)!r} has no {column}. Every row needs a path and a"
                f" label: fill in the {column}, or remove the row."
            )
    word = values.get("split", "").lower()
    if word and word not in SPLIT_WORDS:
        near = suggest_closest(word, SPLIT_WORDS)
        raise RequestError(
            f"Row {number} of {str(file)!r} has the split {word!r}. {near}Expected:"
            f" {', '.join(SPLIT_WORDS)}, or an empty cell."
        )
    return _Row(
        number,
        _resolve_path(file, number, values["path"]),
        values["label"],
        SPLIT_WORDS.get(word, ""),
        values.get("group", ""),
    )


def _resolve_path(file: Path, number: int, path: str) -> str:
    """Return the path relative to the table's folder, separated by '/'.

    Raises `RequestError` for a path outside that folder.
    """
    base = os.path.abspath(file.parent)
    whole = os.path.normpath(os.path.join(base, os.path.expanduser(path)))
    if not whole.startswith(os.path.join(base, "")):
        raise RequestError(
            f"Row {number} of {str(file)!r} has the path {path!r}, which is outside of the table's"
            " folder. Expected: paths relative to that folder. Move the table to a folder above"
            " the images (or link the images there), and adapt the paths."
        )
    return os.path.relpath(whole, base).replace(os.sep, "/")


def _check_files(file: Path, rows: Sequence[_Row]) -> None:
    """Raise `RequestError` for a duplicate path or a missing file."""
    first: dict[str, int] = {}
    for row in rows:
        if row.path in first:
            raise RequestError(
                f"Rows {first[row.path]} and {row.number} of {str(file)!r} both have the path"
                f" {row.path!r}. Expected: one row per image. Remove one."
            )
        first[row.path] = row.number
    missing = [row for row in rows if not (file.parent / row.path).is_file()]
    if missing:
        count = len(missing) - 1
        more = f" So do {count} other row(s)." if count else ""
        raise RequestError(
            f"Row {missing[0].number} of {str(file)!r} has the path {missing[0].path!r}, where"
            f" there is no file.{more} Paths are relative to {str(file.parent)!r}. Correct the"
            " paths, or remove the rows."
        )
