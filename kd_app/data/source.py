"""`Source` and `Listing`, the interface of sources of labeled images."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from kd_app.config import RequestError, Typed
from kd_app.config.csv_cells import escape_undecodable
from kd_app.config.values import check_values
from kd_app.data.crop import Crop
from kd_app.data.images import Draft

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Listing:
    """The images of a source, without their pixels.

    The position of an image is its image number, which never changes. files: a name for
    each image, either a path relative to the root, separated by '/', or a generated
    name like 'digits/0012'. split: 'train', 'validation', 'test', or '' for images
    without a predefined split. group: '' for images without a group. fingerprint:
    sha256 of names, labels, predefined splits, groups and contents; independent of the
    machine and of the path of the data. notes: what the user should know about the
    listing, one sentence each. digests: hash of the content of each image; empty if
    unknown. whole: whether the digests are of all bytes of the files.
    """

    classes: tuple[str, ...]
    files: tuple[str, ...]
    target: Int64[np.ndarray, " images"]
    split: tuple[str, ...]
    group: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()
    digests: tuple[bytes, ...] = ()
    whole: bool = True

    def __post_init__(self) -> None:
        """Raise `RequestError` for a class, split or group whose name is not UTF-8."""
        for key, names in (("class", self.classes), ("split", self.split), ("group", self.group)):
            check_values(sorted(set(names)), key)

    @cached_property
    def printable_files(self) -> tuple[str, ...]:
        """The names of the images for tables: bytes that are no UTF-8 are escapes."""
        return tuple(map(escape_undecodable, self.files))


class Source(Typed):
    """A set of labeled images; ``data.source._target_`` is the name of a subclass."""

    channels: int
    """Number of channels of the images: 1 (gray) or 3 (color)."""
    license: str | None = None
    """License of the images; None if unknown."""
    is_only_measured = False
    """Whether the images only measure models; then a single class, and classes without
    images, are accepted.
    """
    size: int | None
    """Side of the images if all are squares of one size, known without decoding."""

    @abstractmethod
    def list_images(self) -> Listing:
        """Return names, labels and predefined splits of the images.

        Raises `RequestError` for missing files, no images or a single class.
        """

    def hash_images(self, *, whole: bool) -> Sequence[bytes]:
        """Return the digests of the images, see `Listing`; of all bytes of each file if
        `whole`.
        """
        return self.list_images().digests

    def store(self) -> Tensor | None:
        """Return all pixels, uint8 ``[N, C, H, W]``, for small sets of one image size.

        None: the images are read by `read`.
        """
        return None

    @abstractmethod
    def read(self, index: int, *, shorter_side: int | None = None) -> Image.Image:
        """Return image `index`, upright, in mode 'L' or 'RGB' depending on `channels`.

        shorter_side: the source may reduce the image while decoding, but not below this
        number of pixels on the shorter side. Raises `BadImageError`. Thread-safe, and
        safe in worker processes.
        """

    def read_draft(self, index: int, *, shorter_side: int, least_side: int) -> Draft:
        """Return image `index`, decoded as fast as possible.

        The shorter side of the image has at least `least_side` pixels, if it has as
        many in the file. The size of the draft is that of the image that `read`
        returns for `shorter_side`. Raises `BadImageError`.
        """
        image = self.read(index, shorter_side=shorter_side)
        return Draft(image, image.size)

    def read_crop(self, index: int, crop: Crop) -> Image.Image:
        """Return a crop of image `index`. A source may read only what the crop needs,
        with slightly different pixels. Raises `BadImageError`.
        """
        return crop.apply(self.read(index))


def build_source(source: Callable[..., Any], root: Path | None) -> Source:
    """Build the source, with the folder `root` if the source has that setting.

    Raises `RequestError` for a `root` that the source does not use, and for a missing
    or invalid `root`.
    """
    reads_root = "root" in signature(source).parameters
    if root is not None and not reads_root:
        raise RequestError(
            f"data.root={root} has no effect: these data are not read from a folder. Remove"
            " data.root, or use data=folder."
        )
    try:
        built = source(root=root) if reads_root else source()
    except RequestError as error:
        fix = ""
        if "root" in str(error):
            fix = " Set data.root to the location of the images."
        elif "channels=" in str(error):
            fix = (
                " Image files are read in color (3) or gray (1). Images with other channels need a"
                " data module of your own (data._target_, see docs/extending.md)."
            )
        raise RequestError(f"{error}{fix}") from (None if root is None else error)
    assert isinstance(built, Source)
    return built
