"""`Source` and `Listing`, the interface of sources of labeled images."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from kd_app.config import Typed

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
