"""Images that a table lists, with their labels, and with ready splits and groups where
it has them.
"""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from kd_app.config import RequestError, suggest_closest
from kd_app.data.files import FileSource, require_two_classes, resolve_root
from kd_app.data.folder import SPLIT_WORDS
from kd_app.data.source import Listing

_COLUMNS = ("path", "label", "split", "group")
_NEEDED = _COLUMNS[:2]
_NAME = "labels.csv"


class _Row(NamedTuple):
    """One image; `number` as a spreadsheet counts, the header being row 1."""

    number: int
    path: str
    label: str
    split: str
    group: str


class CsvFile(FileSource):
    """The images of a CSV with the columns ``path`` and ``label``, and ``split``
    (train, val, test or empty) and ``group`` if there.

    `root`: the .csv, or the folder that holds ``labels.csv``. Paths are relative to the
    folder of the .csv and stay inside it, so that the whole can be moved; an absolute
    path that points inside is made relative. Other columns are left alone. UTF-8;
    separated by comma, semicolon or tab, whichever the header has most of. Images keep
    the order of the rows. Classes are ordered by code point, or as numbers where all
    labels are whole numbers.
    """

    def __init__(self, *, root: Path | None, channels: Literal[1, 3]) -> None:
        self.root = root
        self.channels = channels

    def find(self) -> Listing:
        """Read the table. Raises `RequestError`, naming the row: a missing column, file
        or label, an unknown split, a path twice or outside.
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
        f"Set data.root={path / tables[0]} to read that one."
        if tables
        else f"Put a {_NAME} with the columns path and label there, or set data.root to a .csv."
    )
    raise RequestError(f"The folder {str(path)!r} holds no {_NAME}. {fix}")


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
            f"{str(file)!r} can't be read: {error}. Expected: a CSV in UTF-8 with the columns path"
            " and label. Save it again as such."
        ) from error
    if not rows:
        raise RequestError(
            f"{str(file)!r} has a header and no row. Expected: one row an image, with its path and"
            " label."
        )
    return rows


def _find_columns(file: Path, header: Sequence[str]) -> dict[str, int]:
    """Column name -> position. Raises `RequestError` where path or label is missing."""
    names = [name.strip().lower() for name in header]
    for column in _NEEDED:
        if names.count(column) != 1:
            wrong = "twice" if column in names else "missing"
            near = "" if column in names else suggest_closest(column, names)
            raise RequestError(
                f"The column {column!r} of {str(file)!r} is {wrong}; its header has:"
                f" {', '.join(names) or 'nothing'}. {near}Expected: path and label, and split and"
                " group if there."
            )
    return {column: names.index(column) for column in _COLUMNS if column in names}


def _parse_row(file: Path, number: int, cells: Sequence[str], places: dict[str, int]) -> _Row:
    found = {
        column: cells[place].strip() if place < len(cells) else ""
        for column, place in places.items()
    }
    for column in _NEEDED:
        if not found[column]:
            raise RequestError(
                f"Row {number} of {str(file)!r} has no {column}. Every row needs a path and a"
                " label: fill it in, or remove the row."
            )
    word = found.get("split", "").lower()
    if word and word not in SPLIT_WORDS:
        near = suggest_closest(word, SPLIT_WORDS)
        raise RequestError(
            f"Row {number} of {str(file)!r} has the split {word!r}. {near}Expected:"
            f" {', '.join(SPLIT_WORDS)}, or nothing."
        )
    return _Row(
        number,
        _resolve_path(file, number, found["path"]),
        found["label"],
        SPLIT_WORDS.get(word, ""),
        found.get("group", ""),
    )


def _resolve_path(file: Path, number: int, path: str) -> str:
    """The path relative to the table's folder, '/'-separated. Raises `RequestError`
    where it leads out of it.
    """
    base = os.path.abspath(file.parent)
    whole = os.path.normpath(os.path.join(base, os.path.expanduser(path)))
    if not whole.startswith(os.path.join(base, "")):
        raise RequestError(
            f"Row {number} of {str(file)!r} has the path {path!r}, which is outside of the table's"
            " folder. Expected: paths relative to that folder. Put the table above the images (a"
            " link to them will do) and write the paths from there."
        )
    return os.path.relpath(whole, base).replace(os.sep, "/")


def _check_files(file: Path, rows: Sequence[_Row]) -> None:
    """Raises `RequestError` for a path that is twice or where there is no file."""
    first: dict[str, int] = {}
    for row in rows:
        if row.path in first:
            raise RequestError(
                f"Rows {first[row.path]} and {row.number} of {str(file)!r} both have the path"
                f" {row.path!r}. Expected: one row an image. Remove one."
            )
        first[row.path] = row.number
    lost = [row for row in rows if not (file.parent / row.path).is_file()]
    if lost:
        more = f" So do {len(lost) - 1} other row(s)." if len(lost) > 1 else ""
        raise RequestError(
            f"Row {lost[0].number} of {str(file)!r} has the path {lost[0].path!r}, where there is"
            f" no file.{more} Paths are relative to {str(file.parent)!r}. Correct them, or remove"
            " the rows."
        )
