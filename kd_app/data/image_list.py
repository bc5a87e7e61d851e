"""Images to label: those of a folder, a single one, or those in a table."""

from dataclasses import dataclass, field
from pathlib import Path

from kd_app.config import RequestError, suggest_closest
from kd_app.config.table import TABLES, read_table
from kd_app.data.folder import list_images_below
from kd_app.data.image_tree import LeftOut, describe_others, is_image, suggest_conversion

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
    if path.exists() and not path.is_file():
        raise RequestError(
            f"images={location!r} is neither a folder nor a regular file, and reading a pipe or a"
            " device may never end. Expected: a folder of images, an image, or a .csv with the"
            " paths of images."
        )
    if not path.is_file():
        siblings = path.parent.iterdir() if path.parent.is_dir() else ()
        near = suggest_closest(path.name, [each.name for each in siblings])
        raise RequestError(
            f"images={location!r} does not exist. {near}Expected: a folder of images, an image,"
            " or a .csv with the paths of images."
        )
    if path.suffix.lower() in TABLES:
        return ImageList(path.parent, _list_paths(path))
    if not is_image(str(path)):
        raise RequestError(
            f"images={location!r} is no image by its name (.jpg, .png ...), and not by its content."
            " Expected: a folder of images, an image, or a .csv with the paths of images."
            f"{suggest_conversion([path.name])}"
        )
    return ImageList(path.parent, (path.name,))


def _list_paths(file: Path) -> tuple[str, ...]:
    table = read_table(file, [_COLUMN])
    column = table.require_column(
        _COLUMN,
        f"Expected: one column {_COLUMN!r}, with paths relative to the folder of the table.",
    )
    names = tuple(table.list_cells(column))
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
