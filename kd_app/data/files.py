"""Base class and checks for sources that read image files from a disk."""

import os
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from kd_app.config import RequestError, suggest_closest
from kd_app.data.crop import Crop
from kd_app.data.crop_decoding import open_crop
from kd_app.data.fingerprint import add_fingerprint, hash_files
from kd_app.data.images import Draft, open_draft, open_image
from kd_app.data.source import Listing, Source


class FileSource(Source):
    """Image files below the folder `base`, which a subclass sets in `find`.

    All images are converted to `channels` (1 or 3).
    """

    size = None
    base: Path
    """Folder that file names are relative to; set by `find`."""

    @abstractmethod
    def find(self) -> Listing:
        """List the images, and set `base`; called once."""

    @cached_property
    def _listing(self) -> Listing:
        return self.find()

    def list_images(self) -> Listing:
        return self._listing

    def hash_images(self, *, whole: bool) -> Sequence[bytes]:
        paths = [os.path.join(self.base, file) for file in self.list_images().files]
        return hash_files(paths, whole=whole)

    def read(self, index: int, *, shorter_side: int | None = None) -> Image.Image:
        file = self.list_images().files[index]
        return open_image(self.base / file, self.channels, shorter_side=shorter_side)

    def read_draft(self, index: int, *, shorter_side: int, least_side: int) -> Draft:
        path = self.base / self.list_images().files[index]
        return open_draft(path, self.channels, shorter_side=shorter_side, least_side=least_side)

    def read_crop(self, index: int, crop: Crop) -> Image.Image:
        return open_crop(self.base / self.list_images().files[index], self.channels, crop)

    def build_listing(
        self,
        classes: Sequence[str],
        files: Sequence[str],
        labels: Sequence[str],
        split: Sequence[str],
        group: Sequence[str],
        *,
        notes: Sequence[str] = (),
    ) -> Listing:
        """Build the listing of `files` below `base`; `labels` are class names."""
        number = {name: position for position, name in enumerate(classes)}
        target = np.array([number[label] for label in labels], dtype=np.int64)
        listing = Listing(
            tuple(classes),
            tuple(files),
            target,
            tuple(split),
            tuple(group),
            fingerprint="",
            notes=tuple(notes),
        )
        paths = [os.path.join(self.base, file) for file in files]
        return add_fingerprint(listing, hash_files(paths))


def resolve_root(root: Path | None, key: str = "data.root") -> Path:
    """Return `root` with ``~`` expanded.

    Raises `RequestError` if `root` is None, does not exist, or is a pipe, a socket or a
    device. `key`: the setting that holds `root`, for the message.
    """
    if root is None:
        raise RequestError(
            "These data need the folder of their images, but data.root is not set. Set data.root,"
            " for example data.root=photos."
        )
    path = root.expanduser()
    if path.is_dir() or path.is_file():
        return path
    if path.exists():
        raise RequestError(
            f"{key}={str(path)!r} is neither a folder nor a regular file, and reading a pipe or a"
            " device may never end. Name a folder or a file."
        )
    parent = path.parent
    near = (
        suggest_closest(path.name, os.listdir(parent))
        if parent.is_dir()
        else f"There is no folder {str(parent)!r} either. "
    )
    raise RequestError(
        f"There is no {str(path)!r}. {near}Expected: the folder that holds the images. Set {key}"
        " to that folder."
    )


def require_two_classes(classes: Sequence[str], where: Path) -> None:
    """Raise `RequestError` for fewer than two classes."""
    if len(classes) < 2:
        raise RequestError(
            f"{str(where)!r} holds a single class, {classes[0]!r}. Expected: at least two. Add the"
            " images of another class."
        )
