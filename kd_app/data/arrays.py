"""Sources small enough to be held in memory as one pixel array."""

import hashlib
from abc import abstractmethod
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from kd_app.data.fingerprint import add_fingerprint
from kd_app.data.source import Listing, Source

Arrays = tuple[UInt8[np.ndarray, "images side side"], Int64[np.ndarray, " images"], tuple[str, ...]]
"""Pixels, class numbers, predefined splits ('' for images without one)."""


class ArraySource(Source):
    """Gray images of one size, all in memory; files are named ``<name>/<number>``."""

    channels = 1
    name: str
    classes: tuple[str, ...]

    @abstractmethod
    def load(self) -> Arrays:
        """Read all images and labels; called once."""

    @cached_property
    def _arrays(self) -> Arrays:
        return self.load()

    @cached_property
    def _listing(self) -> Listing:
        pixels, target, split = self._arrays
        width = len(str(len(target) - 1))
        files = tuple(f"{self.name}/{number:0{width}d}" for number in range(len(target)))
        listing = Listing(self.classes, files, target, split, ("",) * len(target), fingerprint="")
        return add_fingerprint(listing, [hashlib.sha256(image).digest() for image in pixels])

    def list_images(self) -> Listing:
        return self._listing

    def store(self) -> Tensor:
        """Return all pixels, uint8 ``[N, 1, side, side]``."""
        return torch.from_numpy(self._arrays[0]).unsqueeze(1)

    def read(self, index: int, *, shorter_side: int | None = None) -> Image.Image:
        """Return image `index` in mode 'L'."""
        return Image.fromarray(self._arrays[0][index])
