"""Where images come from: the contract between a source and everything behind it."""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from kd_app.config import Typed

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Listing:
    """What a source holds, known without decoding an image; the row number is the
    image's index for ever.

    files: one name an image (a path relative to the root, '/'-separated, or a made-up
    one like 'digits/0012'). split: 'train', 'validation', 'test', or '' where the
    source does not say; group: '' where there is none. fingerprint: sha256 over names,
    labels, ready splits, groups and contents; equal for the same data on another
    machine or path.
    """

    classes: tuple[str, ...]
    files: tuple[str, ...]
    target: Int64[np.ndarray, " images"]
    split: tuple[str, ...]
    group: tuple[str, ...]
    fingerprint: str


class Source(Typed):
    """A set of labeled images. A subclass is what ``data.source._target_`` names."""

    channels: int
    """1 (grey) or 3 (colour) of what `read` and `store` give."""
    license: str | None = None
    """What the images are under, where the source knows it."""
    size: int | None
    """Side of the images where all are squares of the same size (known without
    decoding), else None.
    """

    @abstractmethod
    def list_images(self) -> Listing:
        """Names, labels and ready splits. Raises `RequestError`: no such folder, empty,
        a single class, how to get the files.
        """

    def store(self) -> Tensor | None:
        """All pixels, uint8 ``[N, C, H, W]``, where the set is small and of one size;
        else None, and `read` serves.
        """
        return None

    @abstractmethod
    def read(self, index: int, *, shorter_side: int | None = None) -> Image.Image:
        """Image `index`, upright, in mode 'L' or 'RGB' as `channels` says. Raises
        `BadImageError`. Safe to call from threads and workers.

        A file may be reduced while it is decoded, where that is cheaper, but not to
        less than `shorter_side` pixels on its shorter side.
        """
