"""Unlabeled images from a second folder, in addition to the labeled ones."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from kd_app.config import RequestError
from kd_app.data.crop import Crop
from kd_app.data.crop_decoding import open_crop
from kd_app.data.files import resolve_root
from kd_app.data.fingerprint import hash_files
from kd_app.data.folder import Folder, list_images_below
from kd_app.data.image_tree import LeftOut, suggest_conversion
from kd_app.data.images import Draft, open_draft, open_image
from kd_app.data.source import Listing, Source

UNLABELED = "unlabeled"
"""Name of the split of these images, and first part of their file names."""


class WithUnlabeled(Source):
    """The images of `labeled`, followed by all images in and below `folder`.

    The latter have no class (number -1).
    """

    size = None

    def __init__(self, labeled: Source, folder: Path) -> None:
        self.labeled = labeled
        self.folder = resolve_root(folder, "data.unlabeled")
        self.channels = labeled.channels
        self.license = labeled.license
        self._files: tuple[str, ...] = ()
        self._left_out = LeftOut()

    def list_images(self) -> Listing:
        return self._listing

    @cached_property
    def _listing(self) -> Listing:
        """List the labeled, then the unlabeled images.

        Raises `RequestError`: `folder` is missing, has no image, or holds labeled
        images.
        """
        first = self.labeled.list_images()
        if isinstance(self.labeled, Folder):
            self._check_apart(self.labeled.base.resolve(), first.files)
        if not self._files:
            images = list_images_below(self.folder, self._left_out) if self.folder.is_dir() else ()
            self._files = tuple(sorted(images))
        if not self._files:
            raise RequestError(
                f"data.unlabeled={str(self.folder)!r} holds no image. Expected: a folder with"
                f" images, at any depth. Set data.unlabeled to another folder."
                f"{suggest_conversion(self._left_out.files)}"
            )
        contents = hash_files([self.folder / file for file in self._files])
        total = hashlib.sha256(first.fingerprint.encode())
        for file, content in zip(self._files, contents, strict=True):
            total.update(f"{file}\n{content.hex()}\n".encode("utf-8", "surrogateescape"))
        count = len(self._files)
        return Listing(
            classes=first.classes,
            files=(*first.files, *(f"{UNLABELED}/{file}" for file in self._files)),
            target=np.concatenate((first.target, np.full(count, -1, dtype=np.int64))),
            split=(*first.split, *(UNLABELED,) * count),
            group=(*first.group, *("",) * count),
            fingerprint=total.hexdigest(),
            notes=(*first.notes, *self._left_out.describe(self.folder)),
            digests=(*first.digests, *contents),
            whole=first.whole,
        )

    def _check_apart(self, base: Path, files: Sequence[str]) -> None:
        """Raise `RequestError` if `files`, relative to `base`, lie in the folder."""
        folder = self.folder.resolve()
        inner = f"{folder.relative_to(base).as_posix()}/" if base in folder.parents else ""
        if base == folder or (inner and any(file.startswith(inner) for file in files)):
            raise RequestError(
                f"data.unlabeled={str(self.folder)!r} holds images of data.root={str(base)!r} that"
                " have labels. Move the unlabeled images out of data.root, or, beside folders of"
                " splits (train, test), into a folder named unlabeled."
            )

    def read(self, index: int, *, shorter_side: int | None = None) -> Image.Image:
        first = len(self.labeled.list_images().files)
        if index < first:
            return self.labeled.read(index, shorter_side=shorter_side)
        return open_image(
            self.folder / self._files[index - first], self.channels, shorter_side=shorter_side
        )

    def read_draft(self, index: int, *, shorter_side: int, least_side: int) -> Draft:
        first = len(self.labeled.list_images().files)
        sides = {"shorter_side": shorter_side, "least_side": least_side}
        if index < first:
            return self.labeled.read_draft(index, **sides)
        return open_draft(self.folder / self._files[index - first], self.channels, **sides)

    def read_crop(self, index: int, crop: Crop) -> Image.Image:
        first = len(self.labeled.list_images().files)
        if index < first:
            return self.labeled.read_crop(index, crop)
        return open_crop(self.folder / self._files[index - first], self.channels, crop)


def count_main(listing: Listing) -> int:
    """Return the number of images that are not from the folder of `WithUnlabeled`; they
    come first in the listing.
    """
    return sum(name != UNLABELED for name in listing.split)


def select_main(listing: Listing) -> Listing:
    """Return the images that are not from the folder of `WithUnlabeled`."""
    count = count_main(listing)
    return replace(
        listing,
        files=listing.files[:count],
        target=listing.target[:count],
        split=listing.split[:count],
        group=listing.group[:count],
        digests=listing.digests[:count],
    )
