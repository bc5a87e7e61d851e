"""Where the pixels of all images are: in memory, in a mapped file, or still in the
files they came in. The pixels are the same in all three.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from kd_app.config import RequestError
from kd_app.data.scan import PIXELS, Scan, bound_size, read_scan
from kd_app.data.source import Source

Cache = Literal["ram", "disk", "none"]

_LEAST_DEVIATION = 0.01
"""Of images that are all one color, so that normalizing them does not divide by zero.
"""

_SHARE_OF_MEMORY = 4
"""One part in so many of the available memory may hold pixels."""


class PixelStore(ABC):
    """The pixels of all images by number. Nothing changes in it, so that a copy is the
    store itself.

    size: (height, width) where all images have the same, else None. in_memory: no read
    waits for a disk or a decoder.
    """

    size: tuple[int, int] | None
    in_memory: bool

    @abstractmethod
    def read_image(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        """Image `index`; read-only."""

    def read_batch(
        self, index: Int64[np.ndarray, " batch"]
    ) -> UInt8[np.ndarray, "batch height width channels"]:
        """The images `index`, copied; only where all have one size."""
        return np.stack([self.read_image(number) for number in index.tolist()])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class HeldStore(PixelStore):
    """Pixels one behind the other in one array, or in one mapped file. Pickled, it is
    the path: whoever unpickles it maps the file.
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
        """Where all have one size: the place of an image among those that are not bad.
        """

    def read_image(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        """See `PixelStore`."""
        height, width = self._shapes[index].tolist()
        end = int(self._ends[index])
        picture: np.ndarray = self._pixels[end - height * width * self._channels : end].reshape(
            height, width, self._channels
        )
        return picture

    def read_batch(
        self, index: Int64[np.ndarray, " batch"]
    ) -> UInt8[np.ndarray, "batch height width channels"]:
        """See `PixelStore`; one gather."""
        assert self.size is not None
        found: np.ndarray = self._pixels.reshape(-1, *self.size, self._channels)[self._rows[index]]
        return found

    def __getstate__(self) -> dict[str, Any]:
        return (
            self.__dict__
            if self._path is None
            else {**self.__dict__, "_pixels": None, "in_memory": False}
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._path is not None:
            self._pixels = np.asarray(_map_file(self._path))


class DecodingStore(PixelStore):
    """Decodes an image each time it is read."""

    in_memory = False

    def __init__(
        self, source: Source, shapes: Int64[np.ndarray, "images 2"], decode_size: int
    ) -> None:
        self.size = find_common_size(shapes)
        self._source, self._decode_size = source, decode_size

    def read_image(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        """See `PixelStore`. Raises `BadImageError` for a file that has become bad since the
        scan.
        """
        found = np.asarray(
            bound_size(self._source.read(index, shorter_side=self._decode_size), self._decode_size)
        )
        return found.reshape(*found.shape[:2], self._source.channels)


@dataclass(frozen=True)
class ImageSelection:
    """The images of one batch, as a view gets them; see `kd_app.data.views.ViewInput`."""

    store: PixelStore
    index: Int64[np.ndarray, " batch"]

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) where all images of the data have the same, else None."""
        return self.store.size

    def to_array(self) -> UInt8[np.ndarray, "batch height width channels"]:
        """All at once, as a copy. Raises `RequestError` where they differ in size."""
        if self.size is None:
            raise RequestError(
                "The images differ in size, and data.view takes them as a batch of one size."
                " Expected: a view of single images. Set data.view to one, for example {_target_:"
                " kd_app.data.views.CenterCropView}, or make the images one size."
            )
        return self.store.read_batch(self.index)

    def iterate_images(self) -> Iterator[Image.Image]:
        """One after the other, in mode 'L' or 'RGB'."""
        for number in self.index.tolist():
            picture = self.store.read_image(number)
            yield Image.fromarray(picture if picture.shape[2] == 3 else picture[:, :, 0])


class PixelFile(NamedTuple):
    """notes: what a user should know, one sentence each."""

    store: PixelStore
    notes: tuple[str, ...]


def hold(pixels: UInt8[Tensor, "images channels height width"]) -> HeldStore:
    """A store of images that a source has in memory."""
    array = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    shapes = np.tile(np.array(array.shape[1:3], dtype=np.int64), (len(array), 1))
    return HeldStore(array.reshape(-1), shapes, array.shape[3])


def open_store(source: Source, folder: Path, cache: Cache) -> PixelFile:
    """The store of a scanned source, in the mode `cache`, or in a weaker one where the
    pixels don't fit, which a note says.

    ram: at most a quarter of the available memory; disk: a scan keeps pixels only where
    they take at most half of the free space.
    """
    found = read_scan(folder)
    if cache == "none" or not found.summary.kept:
        return PixelFile(
            DecodingStore(source, found.shapes, found.summary.decode_size),
            _explain_decoding(cache, found),
        )
    path = folder / PIXELS
    available = read_available_memory()
    if cache == "disk" or found.summary.size_bytes > available // _SHARE_OF_MEMORY:
        notes = () if cache == "disk" else (
            f"data.cache=ram: {_format_gib(found.summary.size_bytes)} of pixels are more than a quarter of the available memory ({_format_gib(available)}); "
            "they are read from a mapped file (data.cache=disk).",
        )  # fmt: skip
        return PixelFile(HeldStore(_map_file(path), found.shapes, source.channels, path), notes)
    return PixelFile(
        HeldStore(np.fromfile(path, dtype=np.uint8), found.shapes, source.channels, path), ()
    )


def _explain_decoding(cache: Cache, found: Scan) -> tuple[str, ...]:
    if cache == "none":
        return ()
    needed = _format_gib(found.summary.size_bytes)
    return (
        (
            f"data.cache={cache}: {needed} of pixels were more than half of the free disk when they"
            " were scanned; each read decodes (data.cache=none)."
        ),
    )


def find_common_size(shapes: Int64[np.ndarray, "images 2"]) -> tuple[int, int] | None:
    """(height, width) where all images that are not bad (0 x 0) have the same, else
    None.
    """
    good = shapes[shapes[:, 0] > 0]
    if not len(good) or (good != good[0]).any():
        return None
    return int(good[0, 0]), int(good[0, 1])


def compute_channel_statistics(
    pictures: Iterable[UInt8[np.ndarray, "height width channels"]],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels, in 0..1, to 4
    digits; from exact counts of the 256 values.
    """
    counts: np.ndarray = sum(_count_values(picture) for picture in pictures)  # type: ignore[assignment]
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


def read_available_memory() -> int:
    """Bytes that can be had without swapping, within the limit of the process's
    container where there is one.
    """
    lines = dict(line.split(":", maxsplit=1) for line in _read_text("/proc/meminfo").splitlines())
    found = int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else 4 * 2**30
    limit, used = (
        _read_text("/sys/fs/cgroup/memory.max").strip(),
        _read_text("/sys/fs/cgroup/memory.current").strip(),
    )
    return min(found, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else found


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


def _map_file(path: Path) -> UInt8[np.ndarray, " bytes"]:
    return np.memmap(path, dtype=np.uint8, mode="r")


def _format_gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
