"""Images to label: those of a folder, a single one, or those in a table."""

from dataclasses import dataclass
from pathlib import Path

from kd_app.config import RequestError, suggest_closest
from kd_app.data.folder import list_images_below
from kd_app.data.images import is_image_name
from kd_app.data.table import TABLES, read_table

_COLUMN = "path"


@dataclass(frozen=True)
class ImageList:
    """Names of images, relative to the folder `base`."""

    base: Path
    names: tuple[str, ...]


def read_image_list(location: str) -> ImageList:
    """Return the images at `location`: a folder, an image or a table.

    Images in and below a folder are sorted by code point; images in the column 'path'
    of a .csv or .tsv table keep the order of the table. Raises `RequestError`: nothing
    at `location`, a folder without images, a table without that column or without rows,
    a file without an image extension.
    """
    path = Path(location).expanduser()
    if path.is_dir():
        names = list_images_below(path)
        if not names:
            raise RequestError(
                f"The folder images={location!r} and its sub-folders have no image. Expected: files"
                " with an image extension (.jpg, .png ...)."
            )
        return ImageList(path, tuple(sorted(names)))
    if not path.is_file():
        siblings = path.parent.iterdir() if path.parent.is_dir() else ()
        near = suggest_closest(path.name, [each.name for each in siblings])
        raise RequestError(
            f"images={location!r} does not exist. {near}Expected: a folder of images, an image,"
            " or a .csv with the paths of images."
        )
    if path.suffix.lower() in TABLES:
        return ImageList(path.parent, _list_paths(path))
    if not is_image_name(path.name):
        raise RequestError(
            f"images={location!r} has no image extension (.jpg, .png ...). Expected: a folder of"
            " images, an image, or a .csv with the paths of images."
        )
    return ImageList(path.parent, (path.name,))


def _list_paths(file: Path) -> tuple[str, ...]:
    table = read_table(file, [_COLUMN])
    column = table.require_column(
        _COLUMN,
        f"Expected: one column {_COLUMN!r}, with paths relative to the folder of the table.",
    )
    names = tuple(cells[column] if len(cells) > column else "" for _, cells in table.rows)
    if not names:
        raise RequestError(
            f"The table {str(file)!r} lists no images. Expected: one row per image, with its path."
        )
    if "" in names:
        number = table.rows[names.index("")].number
        raise RequestError(
            f"In the table {str(file)!r}, {names.count(''):,} of {len(names):,} rows have no path;"
            f" the first is row {number}. Expected: a path in every row. Fill in the paths, or"
            " remove the rows."
        )
    return names
