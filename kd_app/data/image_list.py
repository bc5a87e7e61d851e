"""Which images are to be labeled: a folder's, one, or those that a table lists."""

import csv
from dataclasses import dataclass
from pathlib import Path

from kd_app.config import RequestError, suggest_closest
from kd_app.data.folder import list_images_below
from kd_app.data.images import is_image_name

_TABLES = (".csv", ".tsv")
_COLUMN = "path"


@dataclass(frozen=True)
class ImageList:
    """Images by name, relative to `base`."""

    base: Path
    names: tuple[str, ...]


def image_list(said: str) -> ImageList:
    """The images of a folder with all below it, ordered by code point; one file; or
    those in the column 'path' of a table, in its order.

    Raises `RequestError`: nothing there, a folder without images, a table without that
    column or without rows, a file that is no image by its name.
    """
    path = Path(said).expanduser()
    if path.is_dir():
        names = list_images_below(path)
        if not names:
            raise RequestError(
                f"There is no image in the folder images={said!r} or below it. Expected: files that"
                " end as images do (.jpg, .png ...)."
            )
        return ImageList(path, tuple(sorted(names)))
    if not path.is_file():
        near = (
            suggest_closest(path.name, [each.name for each in path.parent.iterdir()])
            if path.parent.is_dir()
            else ""
        )
        raise RequestError(
            f"There is no images={said!r}. {near}Expected: a folder of images, an image, or a .csv"
            " that lists some."
        )
    if path.suffix.lower() in _TABLES:
        return ImageList(path.parent, _listed(path))
    if not is_image_name(path.name):
        raise RequestError(
            f"images={said!r} does not end as an image does (.jpg, .png ...). Expected: a folder of"
            " images, an image, or a .csv."
        )
    return ImageList(path.parent, (path.name,))


def _listed(table: Path) -> tuple[str, ...]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as text:
            header = text.readline()
            text.seek(0)
            rows = list(csv.reader(text, delimiter=max(",;\t", key=header.count), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(
            f"The table {str(table)!r} can't be read: {error}. Expected: UTF-8, with the column"
            f" {_COLUMN!r}."
        ) from None
    heads = [head.strip().lower() for head in rows[0]] if rows else []
    if heads.count(_COLUMN) != 1:
        raise RequestError(
            f"The table {str(table)!r} has the columns {', '.join(heads) or 'none'}."
            f" {suggest_closest(_COLUMN, heads)}Expected: one column {_COLUMN!r}, with paths relative to"
            " the table's folder."
        )
    place = heads.index(_COLUMN)
    names = tuple(row[place].strip() if len(row) > place else "" for row in rows[1:] if any(row))
    if not names:
        raise RequestError(
            f"The table {str(table)!r} lists no image. Expected: a row for each, with its path."
        )
    if "" in names:
        raise RequestError(
            f"In the table {str(table)!r} {names.count(''):,} of {len(names):,} rows have no path,"
            f" the first is row {names.index('') + 1}. Expected: a path in every row. Fill them in,"
            " or remove the rows."
        )
    return names
