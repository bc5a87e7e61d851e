"""Images in a folder without classes, and a table of labels that only judges."""

from collections import defaultdict
from pathlib import Path
from typing import Final, Literal

import numpy as np

from kd_app.config import RequestError
from kd_app.config.errors import quote_some
from kd_app.config.table import read_table
from kd_app.data.files import FileSource, resolve_root
from kd_app.data.fingerprint import add_fingerprint, hash_files
from kd_app.data.folder import list_images_below
from kd_app.data.image_tree import LeftOut, suggest_conversion
from kd_app.data.source import Listing

FEWEST: Final = 10
"""Images that can be divided into images to learn from, to choose by and to test on."""
_SHOWN: Final = 3


class UnlabeledFolder(FileSource):
    """All images in and below a folder, without classes; sorted by code point.

    Hidden names, system folders and files that are no images are left out, with a note.
    judge: a CSV file with the columns path and label, of some or all images. The path
    is relative to the folder, or a file name that only one image has. Images without a
    label have the class number -1.
    """

    def __init__(self, *, root: Path | None, channels: Literal[1, 3], judge: Path | None) -> None:
        self.root = root
        self.channels = channels
        self.judge = judge

    def find(self) -> Listing:
        """List the folder.

        Raises `RequestError`: the folder is missing or a file, or has fewer than
        `FEWEST` images; the table can't be read, names an image that is not there,
        or gives an image two labels.
        """
        self.base = resolve_root(self.root)
        if not self.base.is_dir():
            raise RequestError(
                f"data.root={str(self.base)!r} is a file. Expected: a folder with images, at any"
                " depth. If this is an archive, unpack the archive."
            )
        left_out = LeftOut()
        files = tuple(sorted(list_images_below(self.base, left_out)))
        if len(files) < FEWEST:
            raise RequestError(
                f"{str(self.base)!r} holds {len(files)} image(s). Expected: at least {FEWEST}, at"
                " any depth, because neighbors are judged on images that the student has not seen;"
                " a few hundred make the judgment useful. Set data.root to a folder with more"
                f" images.{suggest_conversion(left_out.files)}"
            )
        labels = {} if self.judge is None else _read_labels(self.judge, files)
        classes = tuple(sorted(set(labels.values())))
        number = {name: position for position, name in enumerate(classes)}
        target = [number[labels[file]] if file in labels else -1 for file in files]
        empty = ("",) * len(files)
        listing = Listing(
            classes,
            files,
            np.array(target, dtype=np.int64),
            empty,
            empty,
            fingerprint="",
            notes=left_out.describe(self.base),
        )
        return add_fingerprint(listing, hash_files([self.base / file for file in files]))


def _read_labels(table: Path, files: tuple[str, ...]) -> dict[str, str]:
    """Return the labels of the images that the table names."""
    fix = "Expected: the columns path and label, one row an image."
    if not table.is_file():
        raise RequestError(
            f"data.judge={str(table)!r} is no file. Expected: a CSV file with the columns path and"
            " label. Name the file, or set data.judge=null: then the student is judged by its"
            " agreement with the teacher alone."
        )
    content = read_table(table, ("path", "label"))
    paths, labels = (
        content.list_cells(content.require_column(name, fix)) for name in ("path", "label")
    )
    places = _index_names(files)
    chosen: dict[str, str] = {}
    unknown = []
    for path, label in zip(paths, labels, strict=True):
        matches = places.get(path.replace("\\", "/").removeprefix("./"), [])
        if len(matches) != 1:
            unknown.append(path)
        elif label and chosen.setdefault(matches[0], label) != label:
            raise RequestError(
                f"data.judge={str(table)!r} gives {matches[0]!r} two labels,"
                f" {chosen[matches[0]]!r} and {label!r}. Expected: one label an image. Remove one"
                " row."
            )
    if unknown:
        raise RequestError(
            f"data.judge={str(table)!r} names {len(unknown):,} image(s) that are not in the data,"
            f" or not only once: {quote_some(unknown, _SHOWN)}. Expected: paths relative to"
            f" data.root, such as {quote_some(files, 1)}. Correct the column path, or remove these"
            " rows."
        )
    if len(set(chosen.values())) < 2:
        raise RequestError(
            f"data.judge={str(table)!r} has {len(set(chosen.values()))} different label(s)."
            " Expected: at least two, to tell images apart by them. Add labels, or set"
            " data.judge=null."
        )
    return chosen


def _index_names(files: tuple[str, ...]) -> dict[str, list[str]]:
    """The images that a path, or else a file name, stands for."""
    names: dict[str, list[str]] = defaultdict(list)
    for file in files:
        names[file.rpartition("/")[2]].append(file)
    return {**names, **{file: [file] for file in files}}
