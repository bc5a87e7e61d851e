"""What sources that are files on a disk share: a checked root, and images by name below
it.
"""

import os
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from kd_app.config import RequestError, suggest_closest
from kd_app.data.fingerprint import add_fingerprint, hash_files
from kd_app.data.images import open_image
from kd_app.data.source import Listing, Source


class FileSource(Source):
    """Images that are files below `base`, which a subclass finds; `channels` (1 or 3)
    is what all are converted to.
    """

    size = None
    base: Path
    """What names are relative to; known once `find` has looked."""

    @abstractmethod
    def find(self) -> Listing:
        """Look at the disk; called once."""

    @cached_property
    def _listing(self) -> Listing:
        return self.find()

    def list_images(self) -> Listing:
        """Names, labels and ready splits; see `Source.listing`."""
        return self._listing

    def read(self, index: int, *, shorter_side: int | None = None) -> Image.Image:
        """Image `index`; see `Source.read`."""
        file = self.list_images().files[index]
        return open_image(self.base / file, self.channels, shorter_side=shorter_side)

    def build_listing(
        self,
        classes: Sequence[str],
        files: Sequence[str],
        labels: Sequence[str],
        split: Sequence[str],
        group: Sequence[str],
    ) -> Listing:
        """The listing of `files` below `base`, `labels` being class names."""
        number = {name: position for position, name in enumerate(classes)}
        target = np.array([number[label] for label in labels], dtype=np.int64)
        listing = Listing(
            tuple(classes), tuple(files), target, tuple(split), tuple(group), fingerprint=""
        )
        return add_fingerprint(listing, hash_files([self.base / file for file in files]))


def resolve_root(root: Path | None, key: str = "data.root") -> Path:
    """`root` with ``~`` expanded. Raises `RequestError` where it is None, or where
    nothing is there, naming `key` and what is called alike.
    """
    if root is None:
        raise RequestError(
            "This data needs the place of its images: data.root is not set. Set it, for example"
            " data.root=photos."
        )
    path = root.expanduser()
    if path.exists():
        return path
    parent = path.parent
    near = (
        suggest_closest(path.name, os.listdir(parent))
        if parent.is_dir()
        else f"There is no folder {str(parent)!r} either. "
    )
    raise RequestError(
        f"There is no {str(path)!r}. {near}Expected: the folder that holds the images. Set {key}"
        " to it."
    )


def require_two_classes(classes: Sequence[str], where: Path) -> None:
    """Raises `RequestError` for a single class: there is nothing to tell apart."""
    if len(classes) < 2:
        raise RequestError(
            f"{str(where)!r} holds a single class, {classes[0]!r}. Expected: at least two. Add the"
            " images of another class."
        )
