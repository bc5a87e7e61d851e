"""Stores of the pixels of all images: in memory, in a mapped file, or decoded per read.

All stores return the same pixels.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from kd_app.config import RequestError, RunError
from kd_app.config.memory import read_available_memory
from kd_app.data.crop import Crop
from kd_app.data.images import BadImageError, reduce_image
from kd_app.data.scan import PIXELS, Scan, read_scan
from kd_app.data.source import Source

Cache = Literal["ram", "disk", "none"]

_LEAST_DEVIATION = 0.01
"""Lower bound of the standard deviation: images of one color have a deviation of 0."""

_SHARE_OF_MEMORY = 4
"""Pixels may use 1 / _SHARE_OF_MEMORY of the available memory."""


class PixelStore(ABC):
    """The pixels of all images, by image number.

    size: (height, width) of the images; None if sizes differ. in_memory: whether reads
    need neither a disk nor a decoder.
    """

    size: tuple[int, int] | None
    in_memory: bool

    @abstractmethod
    def read_image(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        """Return image `index`; read-only."""

    def read_batch(
        self, index: Int64[np.ndarray, " batch"]
    ) -> UInt8[np.ndarray, "batch height width channels"]:
        """Return a copy of the images `index`; for images of one size only."""
        return np.stack([self.read_image(number) for number in index.tolist()])

    def read_crop(self, index: int, crop: Crop) -> Image.Image:
        """Return a crop of image `index`, in mode 'L' or 'RGB'."""
        return crop.apply(_to_image(self.read_image(index)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Stores are immutable.
        return self


class HeldStore(PixelStore):
    """Pixels of all images, concatenated in one array or one mapped file.

    A pickled store of a mapped file contains the path; unpickling maps the file again.
    """

    def __init__(
        self,
        pixels: UInt8[np.ndarray, " bytes"],
        shapes: Int64[np.ndarray, "images 2"],
        channels: int,
        path: Path | None = None,
    ) -> None:
        self.in_memory = not isinstance(pixels, np.memmap)
        self.size = find_common_size(shapes)
        self._pixels: np.ndarray = np.asarray(pixels)
        self._shapes, self._channels, self._path = shapes, channels, path
        self._ends = np.cumsum(shapes.prod(axis=1) * channels)
        self._rows = np.cumsum(shapes[:, 0] > 0) - 1
        """Position of each image among the readable ones, for images of one size."""

    def read_image(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        height, width = self._shapes[index].tolist()
        end = int(self._ends[index])
        picture: np.ndarray = self._pixels[end - height * width * self._channels : end].reshape(
            height, width, self._channels
        )
        return picture

    def read_batch(
        self, index: Int64[np.ndarray, " batch"]
    ) -> UInt8[np.ndarray, "batch height width channels"]:
        assert self.size is not None
        pictures = self._pixels.reshape(-1, *self.size, self._channels)
        batch: np.ndarray = pictures[self._rows[index]]
        return batch

    def __getstate__(self) -> dict[str, Any]:
        if self._path is None:
            return self.__dict__
        return {**self.__dict__, "_pixels": None, "in_memory": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._path is not None:
            self._pixels = np.asarray(_map_file(self._path))


class DecodingStore(PixelStore):
    """Decodes an image for each read.

    is_exact: whether crops have the pixels of the other stores; else the source reads
    only what a crop needs.
    """

    in_memory = False
    is_exact = True

    def __init__(
        self, source: Source, shapes: Int64[np.ndarray, "images 2"], decode_size: int
    ) -> None:
        self.size = find_common_size(shapes)
        self._source, self._decode_size = source, decode_size

    def read_image(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        """Decode image `index`.

        Raises `RunError` for a file that was damaged after the scan.
        """
        with _explain_damage():
            image = self._source.read(index, shorter_side=self._decode_size)
        picture = np.asarray(reduce_image(image, self._decode_size, stored=image.size))
        return picture.reshape(*picture.shape[:2], self._source.channels)

    def read_crop(self, index: int, crop: Crop) -> Image.Image:
        if self.is_exact:
            return super().read_crop(index, crop)
        with _explain_damage():
            return self._source.read_crop(index, crop)

    def make_fast(self) -> Self:
        """Return a copy of this store whose crops are not exact."""
        store = copy.copy(self)
        store.is_exact = False
        return store


@contextmanager
def _explain_damage() -> Iterator[None]:
    """Raise `RunError` for an image that was damaged after the scan."""
    try:
        yield
    except BadImageError as error:
        raise RunError(
            f"{error} The file could be read when the images were scanned. Completed work is"
            " kept: restore the file and repeat the command to resume."
        ) from error


@dataclass(frozen=True)
class ImageSelection:
    """The images of one batch; implements `kd_app.data.views.ViewInput`."""

    store: PixelStore
    index: Int64[np.ndarray, " batch"]

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of all images of the data; None if sizes differ."""
        return self.store.size

    def to_array(self) -> UInt8[np.ndarray, "batch height width channels"]:
        """Return a copy of all images. Raises `RequestError` if sizes differ."""
        if self.size is None:
            raise RequestError(
                "The images differ in size, but data.view needs images of one size. Expected: a"
                " view of single images. Set data.view to such a view, for example {_target_:"
                " kd_app.data.views.CenterCropView}, or resize the images to one size."
            )
        return self.store.read_batch(self.index)

    def iterate_images(self) -> Iterator[Image.Image]:
        """Yield each image, in mode 'L' or 'RGB'."""
        for number in self.index.tolist():
            yield _to_image(self.store.read_image(number))

    def read_crop(self, position: int, crop: Crop) -> Image.Image:
        """Return a crop of the image at a position in the batch."""
        return self.store.read_crop(int(self.index[position]), crop)


def _to_image(picture: UInt8[np.ndarray, "height width channels"]) -> Image.Image:
    return Image.fromarray(picture if picture.shape[2] == 3 else picture[:, :, 0])


class PixelFile(NamedTuple):
    """An opened store. notes: messages for the user, one sentence each."""

    store: PixelStore
    notes: tuple[str, ...]


def hold(pixels: UInt8[Tensor, "images channels height width"]) -> HeldStore:
    """Build a store of images that are in memory."""
    array = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    shapes = np.tile(np.array(array.shape[1:3], dtype=np.int64), (len(array), 1))
    return HeldStore(array.reshape(-1), shapes, array.shape[3])


def open_store(source: Source, folder: Path, cache: Cache) -> PixelFile:
    """Open the store of a scanned source in the mode `cache`.

    If the pixels don't fit, a slower mode is used, with a note. ram: pixels may use a
    quarter of the available memory. disk: a scan stores pixels only if they use at most
    half of the free space.
    """
    result = read_scan(folder)
    shapes, summary = result.shapes, result.summary
    if cache == "none" or not summary.kept:
        store = DecodingStore(source, shapes, summary.decode_size)
        return PixelFile(store, _explain_decoding(cache, result))
    path = folder / PIXELS
    available = read_available_memory()
    is_large = summary.size_bytes > available // _SHARE_OF_MEMORY
    if cache == "ram" and not is_large:
        pixels = np.fromfile(path, dtype=np.uint8)
        return PixelFile(HeldStore(pixels, shapes, source.channels, path), ())
    note = (
        f"data.cache=ram: {_format_gib(summary.size_bytes)} of pixels are more than a quarter of"
        f" the available memory ({_format_gib(available)}). The pixels are read from a mapped file"
        " (data.cache=disk)."
    )
    notes = (note,) if cache == "ram" else ()
    return PixelFile(HeldStore(_map_file(path), shapes, source.channels, path), notes)


def _explain_decoding(cache: Cache, result: Scan) -> tuple[str, ...]:
    if cache == "none":
        return ()
    note = (
        f"data.cache={cache}: {_format_gib(result.summary.size_bytes)} of pixels were more than"
        " half of the free disk space during the scan. Images are decoded at each read"
        " (data.cache=none)."
    )
    return (note,)


def find_common_size(shapes: Int64[np.ndarray, "images 2"]) -> tuple[int, int] | None:
    """Return (height, width) of all readable images; None if their sizes differ.

    A shape of 0 x 0 marks a bad image.
    """
    good = shapes[shapes[:, 0] > 0]
    if not len(good) or (good != good[0]).any():
        return None
    return int(good[0, 0]), int(good[0, 1])


def compute_channel_statistics(
    pictures: Iterable[UInt8[np.ndarray, "height width channels"]],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel over all pixels, in 0..1.

    Computed from exact counts of the 256 values, and rounded to 4 digits.
    """
    counts: Any = sum(_count_values(picture) for picture in pictures)
    shares, levels = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255
    mean = shares @ levels
    deviation = np.sqrt(np.maximum(shares @ levels**2 - mean**2, _LEAST_DEVIATION**2))
    return tuple(mean.round(4).tolist()), tuple(deviation.round(4).tolist())


def _count_values(
    picture: UInt8[np.ndarray, "height width channels"],
) -> Int64[np.ndarray, "channels 256"]:
    return np.stack(
        [
            np.bincount(picture[:, :, channel].reshape(-1), minlength=256)
            for channel in range(picture.shape[2])
        ]
    )


def _map_file(path: Path) -> UInt8[np.ndarray, " bytes"]:
    return np.memmap(path, dtype=np.uint8, mode="r")


def _format_gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
