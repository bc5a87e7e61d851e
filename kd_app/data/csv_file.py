"""Images and labels listed in a CSV file, optionally with splits and groups."""

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from kd_app.config import RequestError
from kd_app.config.errors import quote_some
from kd_app.config.table import TABLES, CsvTable, read_table
from kd_app.data.files import FileSource, require_two_classes, resolve_root
from kd_app.data.images import is_image_name
from kd_app.data.label_cells import check_single_labels, note_labels
from kd_app.data.source import Listing
from kd_app.data.split_column import SplitColumn, SplitName, normalize_cell
from kd_app.data.unread_columns import Role, check_unread

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

    Optional columns are ``split`` (see `SplitColumn`) and ``group``. `columns`: the
    names of these columns in the table; null: there is no such column. `splits`: value
    in the column of the split -> split. `whole_labels`: a label such as 'hot dog' is
    one class, even if 'hot' and 'dog' are classes. `root`: the table, or the folder
    with ``labels.csv``. Paths are relative to the folder `images`, which is relative to
    the folder of the table (null: that folder). `suffix`: the ending of the files, for
    paths without one. Absolute paths and paths that lead out of the folder are
    accepted; names are then relative to the folder that contains all images. Images
    keep the order of the rows. Classes are sorted by code point, or numerically if all
    labels are whole numbers.
    """

    def __init__(
        self,
        *,
        root: Path | None,
        channels: Literal[1, 3],
        columns: dict[Role, Annotated[str, Field(min_length=1)] | None],
        splits: dict[str | int | float | bool, SplitName] | None,
        whole_labels: bool,
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
        self.splits = splits or {}
        self.whole_labels = whole_labels
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
        split = self._read_split_column(table, places)
        reader = _RowReader(table, places, split, self._find_images(file), self.suffix)
        rows = list(reader.read_rows())
        if not rows:
            raise RequestError(
                f"{str(file)!r} has a header but no rows. Expected: one row per image, with path"
                " and label. Add the rows."
            )
        notes = check_unread(table, self.columns, places)
        notes += split.describe() if split else []
        labels = [row.label for row in rows]
        notes += note_labels(labels)
        if not self.whole_labels:
            notes += check_single_labels(file, labels, [row.number for row in rows])
        _check_files(reader, rows)
        self.base = _find_base(reader, rows)
        # The number of an image decides its split and its views, so rows in another
        # order would be other data.
        rows.sort(key=lambda row: row.path)
        whole_numbers = all(label.isdecimal() for label in labels)
        classes = sorted(set(labels), key=lambda label: (int(label) if whole_numbers else 0, label))
        if not self.is_only_measured:
            require_two_classes(classes, file)
        return self.build_listing(
            classes,
            [os.path.relpath(row.path, self.base).replace(os.sep, "/") for row in rows],
            [row.label for row in rows],
            [row.split for row in rows],
            [row.group for row in rows],
            notes=notes,
        )

    def _read_split_column(self, table: CsvTable, places: Mapping[Role, int]) -> SplitColumn | None:
        if "split" in places:
            return SplitColumn(table, places["split"], self.splits)
        if self.splits:
            raise RequestError(
                f"data.source.splits has no effect: no column of {str(table.file)!r} is read as the"
                " split. Set data.source.columns.split to the name of the column, or remove"
                " data.source.splits."
            )
        return None

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

    def _find_columns(self, table: CsvTable) -> dict[Role, int]:
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
                places[role] = table.require_column(
                    name, _EXPECTED.format(role=role), hint=_suggest_column(table, role)
                )
            elif (place := table.find_column(name)) is not None:
                places[role] = place
        return places


def _suggest_column(table: CsvTable, role: Role) -> str:
    """Return how to name the column that seems to have a role; '' if none does."""
    cells = {name: table.list_cells(place) for place, name in enumerate(table.columns) if name}
    if role == "path":
        names = [name for name in cells if cells[name] and is_image_name(cells[name][0])]
        if names:
            return (
                f"The column {names[0]!r} holds names of images: set"
                f" data.source.columns.path='{names[0]}'. "
            )
    flags = [name for name in cells if set(map(normalize_cell, cells[name])) == {"0", "1"}]
    if role == "label" and len(flags) > 1:
        return (
            f"The columns {quote_some(flags)} hold 0 and 1, as if each were a class. Expected: one"
            " column with the name of the class. With pandas:"
            f" table['label'] = table[{flags[:2]!r}].idxmax(axis=1), with the columns of all"
            " classes; an image of several classes has no single label. "
        )
    return ""


def _find_table(root: Path | None) -> Path:
    path = resolve_root(root)
    if path.is_file():
        return path
    if (path / _NAME).is_file():
        return path / _NAME
    tables = sorted(name for name in os.listdir(path) if name.lower().endswith(TABLES))
    # A form for predictions is no table of labels.
    tables.sort(key=lambda name: ("submission" in name.lower(), "train" not in name.lower()))
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

    table: CsvTable
    places: Mapping[Role, int]
    split: SplitColumn | None
    images: Path
    suffix: str

    def read_rows(self) -> Iterator[_Row]:
        """Yield the rows; raise `RequestError` for an empty cell."""
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
            split = self.split.read(cells) if self.split else ""
            path = self.resolve_path(values["path"])
            yield _Row(number, path, values["label"], split, values.get("group", ""))

    def resolve_path(self, cell: str) -> str:
        """Return the absolute path of the file that a cell names."""
        path = cell
        if "\\" in path and not os.path.exists(self.images / path):
            path = path.replace("\\", "/")
        if not path.lower().endswith(self.suffix.lower()):
            path += self.suffix
        path = os.path.abspath(os.path.join(self.images, os.path.expanduser(path)))
        if not path.isascii() and not os.path.exists(path):
            # macOS writes a letter and its accent as two characters.
            forms = (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
            path = next(filter(os.path.exists, forms), path)
        return path

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
    folders = [row for row in missing if os.path.isdir(row.path)]
    if folders:
        raise RequestError(
            f"Row {folders[0].number} of {file!r} has the path {reader.read_path(folders[0])!r}, a"
            " folder. Expected: one row for each image. For a folder of images for each class, use"
            " data=folder."
        )
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
    cell, base = reader.read_path(row), reader.images
    parts = re.split(r"[/\\]", cell)
    ends = ("/".join(parts[start:]) for start in range(1, len(parts)))
    ends = (end for end in ends if end and not end.startswith("/"))
    inner = next((end for end in ends if (base / end).is_file()), None)
    if inner is not None:
        return f"There is {str(base / inner)!r}: the paths should be like {inner!r}. "
    if _WINDOWS_DRIVE.match(cell) or "://" in cell:
        return "Only paths on this machine are read. "
    if (same := _find_other_case(Path(row.path))) is not None:
        return f"There is {str(same)!r}, which differs in case. "
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


def _find_other_case(path: Path) -> Path | None:
    """Return the file at a path that differs in capital letters; None without one."""
    if path.exists():
        return path
    parent = path if path == path.parent else _find_other_case(path.parent)
    names = os.listdir(parent) if parent is not None and parent.is_dir() else []
    same = next((name for name in names if name.lower() == path.name.lower()), None)
    return None if parent is None or same is None else parent / same


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
