"""Images to label: those of a folder, a single one, or those in a table."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

from kd_app.config import RequestError, suggest_closest
from kd_app.data.folder import list_images_below
from kd_app.data.image_tree import LeftOut, describe_others, is_image, suggest_conversion

_TABLES = (".csv", ".tsv")
_COLUMN = "path"


@dataclass(frozen=True)
class ImageList:
    """Names of images, relative to the folder `base`.

    left_out: the other files in and below a folder of images.
    """

    base: Path
    names: tuple[str, ...]
    left_out: LeftOut = field(default_factory=LeftOut)


def read_image_list(location: str) -> ImageList:
    """Return the images at `location`: a folder, an image or a table.

    Images in and below a folder are sorted by code point; images in the column 'path'
    of a .csv or .tsv table keep the order of the table. Raises `RequestError`: nothing
    at `location`, a folder without images, a table without that column or without rows,
    a file that is no image by its extension or its content.
    """
    path = Path(location).expanduser()
    if path.is_dir():
        left_out = LeftOut()
        names = list_images_below(path, left_out)
        if not names:
            others = f" but {describe_others(left_out.files)}" if left_out.files else ""
            raise RequestError(
                f"The folder images={location!r} and its sub-folders have no image{others}."
                " Expected: image files (.jpg, .png ...)."
                f"{suggest_conversion(left_out.files)}"
            )
        return ImageList(path, tuple(sorted(names)), left_out)
    if not path.is_file():
        siblings = path.parent.iterdir() if path.parent.is_dir() else ()
        near = suggest_closest(path.name, [each.name for each in siblings])
        raise RequestError(
            f"images={location!r} does not exist. {near}Expected: a folder of images, an image,"
            " or a .csv with the paths of images."
        )
    if path.suffix.lower() in _TABLES:
        return ImageList(path.parent, _read_table(path))
    if not is_image(str(path)):
        raise RequestError(
            f"images={location!r} is no image by its name (.jpg, .png ...), and not by its content."
            " Expected: a folder of images, an image, or a .csv with the paths of images."
            f"{suggest_conversion([path.name])}"
        )
    return ImageList(path.parent, (path.name,))


def _read_table(table: Path) -> tuple[str, ...]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as text:
            header = text.readline()
            text.seek(0)
            rows = list(csv.reader(text, delimiter=max(",;\t", key=header.count), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(
            f"The table {str(table)!r} can't be read: {error}. Expected: a table in UTF-8"
            f" with the column {_COLUMN!r}."
        ) from None
    columns = [name.strip().lower() for name in rows[0]] if rows else []
    if columns.count(_COLUMN) != 1:
        raise RequestError(
            f"The table {str(table)!r} has the columns {', '.join(columns) or 'none'}."
            f" {suggest_closest(_COLUMN, columns)}Expected: one column {_COLUMN!r}, with paths"
            " relative to the folder of the table."
        )
    column = columns.index(_COLUMN)
    names = tuple(row[column].strip() if len(row) > column else "" for row in rows[1:] if any(row))
    if not names:
        raise RequestError(
            f"The table {str(table)!r} lists no images. Expected: one row per image, with its path."
        )
    if "" in names:
        raise RequestError(
            f"In the table {str(table)!r}, {names.count(''):,} of {len(names):,} rows have no path;"
            f" the first is row {names.index('') + 1}. Expected: a path in every row. Fill in the"
            " paths, or remove the rows."
        )
    return names
