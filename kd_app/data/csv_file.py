"""Images and labels listed in a CSV file, optionally with splits and groups."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from kd_app.config import RequestError, suggest_closest
from kd_app.data.files import FileSource, require_two_classes, resolve_root
from kd_app.data.layout import SPLIT_WORDS
from kd_app.data.source import Listing
from kd_app.data.table import TABLES, ImageTable, Role, read_table
from kd_app.data.unread_columns import check_unread

_NAME = "labels.csv"
_EXPECTED = (
    "Expected: the columns path and label, and optionally split and group. A column {role} with"
    " another name is named by data.source.columns.{role}=<its name>."
)
_LIKELY_ENDINGS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".webp", ".bmp", ".tif")
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[/\\]")
_MAX_SEARCHED = 100


class _Row(NamedTuple):
    """One image: its row, absolute path, label, split and group."""

    number: int
    path: str
    label: str
    split: str
    group: str


class CsvFile(FileSource):
    """The images of a table with the columns ``path`` and ``label``.

    Optional columns are ``split`` (train, val, test or empty) and ``group``. `columns`:
    the names of these columns in the table; null: there is no such column. `root`: the
    table, or the folder with ``labels.csv``. Paths are relative to the folder `images`,
    which is relative to the folder of the table (null: that folder). `suffix`: the
    ending of the files, for paths without one. Absolute paths and paths that lead out
    of the folder are accepted; names are then relative to the folder that contains all
    images. Images keep the order of the rows. Classes are sorted by code point, or
    numerically if all labels are whole numbers.
    """

    def __init__(
        self,
        *,
        root: Path | None,
        channels: Literal[1, 3],
        columns: dict[Role, Annotated[str, Field(min_length=1)] | None],
        images: Path | None,
        suffix: Annotated[str, Field(pattern=r"^\.?\w+$")] | None,
    ) -> None:
        self.root = root
        self.channels = channels
        self.columns: Mapping[Role, str | None] = {
            "path": "path",
            "label": "label",
            "split": "split",
            "group": "group",
            **columns,
        }
        self.images = images
        self.suffix = "" if suffix is None else f".{suffix.removeprefix('.')}"

    def find(self) -> Listing:
        """Read the table.

        Raises `RequestError` with the row number: a missing column, file or label, an
        unknown split, a duplicate path; and for an unread column that holds splits.
        """
        file = _find_table(self.root)
        names = [name for name in self.columns.values() if name is not None]
        table = read_table(file, names[:2])
        places = self._find_columns(table)
        reader = _RowReader(table, places, self._find_images(file), self.suffix)
        rows = list(reader.read_rows())
        if not rows:
            raise RequestError(
                f"{str(file)!r} has a header but no rows. Expected: one row per image, with path"
                " and label. Add the rows."
            )
        notes = check_unread(table, self.columns, places)
        _check_files(reader, rows)
        self.base = _find_base(reader, rows)
        labels = [row.label for row in rows]
        whole_numbers = all(label.isdecimal() for label in labels)
        classes = sorted(set(labels), key=lambda label: (int(label) if whole_numbers else 0, label))
        if not self.is_only_measured:
            require_two_classes(classes, file)
        return self.build_listing(
            classes,
            [os.path.relpath(row.path, self.base).replace(os.sep, "/") for row in rows],
            labels,
            [row.split for row in rows],
            [row.group for row in rows],
            notes=notes,
        )

    def _find_images(self, file: Path) -> Path:
        """Return the folder that paths are relative to."""
        folder = file.parent / (self.images or "")
        if folder.is_dir():
            return folder
        raise RequestError(
            f"There is no folder {str(folder)!r}. data.source.images={str(self.images)!r} is"
            f" relative to the folder of the table, {str(file.parent)!r}. Expected: the folder that"
            " the paths in the table are relative to."
        )

    def _find_columns(self, table: ImageTable) -> dict[Role, int]:
        """Return role -> position. Raises `RequestError` for a missing column."""
        places: dict[Role, int] = {}
        for role, name in self.columns.items():
            is_required = role in ("path", "label")
            if name is None:
                if is_required:
                    raise RequestError(
                        f"data.source.columns.{role}=null, but every image needs a {role}."
                        f" {_EXPECTED.format(role=role)}"
                    )
                continue
            if is_required or name != role:
                places[role] = table.require_column(name, _EXPECTED.format(role=role))
            elif (place := table.find_column(name)) is not None:
                places[role] = place
        return places


def _find_table(root: Path | None) -> Path:
    path = resolve_root(root)
    if path.is_file():
        return path
    if (path / _NAME).is_file():
        return path / _NAME
    tables = sorted(name for name in os.listdir(path) if name.lower().endswith(TABLES))
    fix = f"Add a {_NAME} with the columns path and label, or set data.root to a .csv file."
    if tables:
        several = (
            f" (it holds {', '.join(tables[:8])}; a column split in one table joins several)"
            if len(tables) > 1
            else ""
        )
        fix = f"Set data.root={path / tables[0]} to read that file{several}."
    raise RequestError(f"The folder {str(path)!r} has no {_NAME}. {fix}")


@dataclass(frozen=True)
class _RowReader:
    """Reads the rows of a table whose paths are relative to the folder `images`."""

    table: ImageTable
    places: Mapping[Role, int]
    images: Path
    suffix: str

    def read_rows(self) -> Iterator[_Row]:
        """Yield the rows; raise `RequestError` for an empty cell or unknown split."""
        for number, cells in self.table.rows:
            values: dict[Role, str] = {
                role: cells[place] if place < len(cells) else ""
                for role, place in self.places.items()
            }
            for column in ("path", "label"):
                if not values[column]:
                    raise RequestError(
                        f"Row {number} of {str(self.table.file)!r} has no {column}. Every row needs"
                        f" a path and a label: fill in the {column}, or remove the row."
                    )
            split = self._read_split(number, values.get("split", ""))
            path = self.resolve_path(values["path"])
            yield _Row(number, path, values["label"], split, values.get("group", ""))

    def _read_split(self, number: int, cell: str) -> str:
        word = cell.lower()
        if not word or word in SPLIT_WORDS:
            return SPLIT_WORDS.get(word, "")
        near = suggest_closest(word, SPLIT_WORDS)
        if word.isdecimal():
            near = "A number does not tell whether a fold is for training or for testing. "
        raise RequestError(
            f"Row {number} of {str(self.table.file)!r} has the split {cell!r}. {near}Expected:"
            f" {', '.join(SPLIT_WORDS)}, or an empty cell."
        )

    def resolve_path(self, cell: str) -> str:
        """Return the absolute path of the file that a cell names."""
        path = cell
        if "\\" in path and not os.path.exists(self.images / path):
            path = path.replace("\\", "/")
        if not path.lower().endswith(self.suffix.lower()):
            path += self.suffix
        return os.path.abspath(os.path.join(self.images, os.path.expanduser(path)))

    def read_path(self, row: _Row) -> str:
        """Return the path of a row as it is in the table."""
        cells = next(cells for number, cells in self.table.rows if number == row.number)
        return str(cells[self.places["path"]])


def _find_base(reader: _RowReader, rows: Sequence[_Row]) -> Path:
    """Return the folder that names are relative to: that of the paths, if it contains
    all images, else the closest folder that does.
    """
    base = os.path.abspath(reader.images)
    outside = next((row for row in rows if not row.path.startswith(os.path.join(base, ""))), None)
    if outside is None:
        return reader.images
    common = Path(os.path.commonpath([os.path.dirname(row.path) for row in rows]))
    if Path.home().is_relative_to(common):
        # names relative to this folder would show where a user's files are
        raise RequestError(
            f"Row {outside.number} of {str(reader.table.file)!r} has the path"
            f" {reader.read_path(outside)!r}, which is outside of {base!r}, and the only folder"
            f" that contains all images is {str(common)!r}. Expected: images in one folder. Copy"
            " or link them there, and set data.source.images to that folder."
        )
    return common


def _check_files(reader: _RowReader, rows: Sequence[_Row]) -> None:
    """Raise `RequestError` for a duplicate path or a missing file."""
    file = str(reader.table.file)
    first: dict[str, _Row] = {}
    for row in rows:
        before = first.setdefault(row.path, row)
        if before is not row:
            labels = (
                f"the labels {before.label!r} and {row.label!r}; an image has one label"
                if before.label != row.label
                else f"the label {row.label!r}"
            )
            count = len(rows) - len({each.path for each in rows})
            raise RequestError(
                f"Rows {before.number} and {row.number} of {file!r} both have the path"
                f" {reader.read_path(row)!r}, with {labels}. Expected: one row per image. Remove"
                f" the repeated row{f's, {count} in all' if count > 1 else ''}."
            )
    missing = [row for row in rows if not os.path.isfile(row.path)]
    if missing:
        count = len(missing) - 1
        more = f" So do {count} other row(s)." if count else ""
        raise RequestError(
            f"Row {missing[0].number} of {file!r} has the path {reader.read_path(missing[0])!r},"
            f" where there is no file.{more} Paths are relative to {str(reader.images)!r}."
            f" {_suggest_place(reader, missing[0])}Correct the paths, or remove the rows."
        )


def _suggest_place(reader: _RowReader, row: _Row) -> str:
    """Return the settings with which the file of a row is found; '' if none is."""
    cell = reader.read_path(row)
    if _WINDOWS_DRIVE.match(cell) or "://" in cell:
        return "Only paths on this machine are read. "
    base = reader.images
    folders = (path for path in _list_folders(base) if path != base)
    for folder in (base, *folders):
        for ending in ("", *_LIKELY_ENDINGS):
            if os.path.isfile(folder / f"{cell}{ending}"):
                settings = [f"data.source.suffix={ending}"] if ending else []
                if folder != base:
                    relative = os.path.relpath(folder, reader.table.file.parent)
                    settings.insert(0, f"data.source.images={relative}")
                return f"Did you mean {' '.join(settings)}? " if settings else ""
    return ""


def _list_folders(base: Path) -> list[Path]:
    """Return up to `_MAX_SEARCHED` folders, at most two levels below `base`."""
    folders: list[Path] = []
    for folder, names, _ in os.walk(base):
        depth = len(Path(folder).relative_to(base).parts)
        names[:] = sorted(name for name in names if not name.startswith(".")) if depth < 2 else []
        folders.append(Path(folder))
        if len(folders) > _MAX_SEARCHED:
            break
    return folders
