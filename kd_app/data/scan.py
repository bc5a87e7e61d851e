"""Scan of a source: decodes every image once, and stores sizes, errors, pixels, hashes,
thumbnails and groups of similar images.
"""

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from pydantic import Field
from torch import Tensor

from kd_app.config.errors import quote_some
from kd_app.config.records import parse_with, read_record
from kd_app.data.duplicates import (
    FINE,
    MAX_COMPARED,
    PictureContents,
    hash_picture,
    make_thumbnail,
)
from kd_app.data.images import BadImageError, compute_reduced_size, reduce_image
from kd_app.data.scan_progress import PROGRESS, ScanProgress
from kd_app.data.source import Source
from kd_app.stages import write_atomically

PIXELS, SIZES, SHAPES, RECORD = "pixels.bin", "sizes.npy", "shapes.npy", "scan.json"
HASHES, SIMILAR, THUMBNAILS = "hashes.npy", "similar.npy", "thumbnails.npy"

_EXPECTED = "Remove that folder to read the images again."
_FAR_FROM_SQUARE = 1.6
"""Ratio of the sides from which a crop to a square is noted; 3:2 photos are below."""
_LARGEST, _STEP = 224, 32
"""Largest side, and step of the sides, of models for images of different sizes."""

_LEAST_DRAFT = 160
"""Least shorter side in pixels of the drafts of which images are compared: five pixels
in each cell of a thumbnail.
"""

Progress = Callable[[int, int], None]
"""Called with the number of completed images and the number of all images."""


@dataclass(frozen=True)
class Summary:
    """Content of ``scan.json``.

    bad: image number -> why the image can't be read. kept: whether the pixels are in
    ``pixels.bin``. size_bytes: size of all pixels.
    """

    decode_size: Annotated[int, Field(ge=0, le=2**15)]
    bad: dict[str, str]
    kept: bool
    size_bytes: Annotated[int, Field(ge=0)]


class Scan(NamedTuple):
    """A finished scan.

    sizes: ``[N, 2]``, height and width of each image in the file; 0 for bad images.
    shapes: the same for the decoded images. contents: of the decoded images.
    """

    summary: Summary
    sizes: Int64[np.ndarray, "images 2"]
    shapes: Int64[np.ndarray, "images 2"]
    contents: PictureContents


class _Decoded(NamedTuple):
    """problem: why the image is bad. size, shape: height and width in the file, and as
    decoded; 0 for a bad image. pixels: None if they are not kept. thumbnail: None if
    the images are not compared.
    """

    problem: str = ""
    size: tuple[int, int] = (0, 0)
    shape: tuple[int, int] = (0, 0)
    pixels: UInt8[np.ndarray, "height width channels"] | None = None
    hash: int = 0
    thumbnail: Tensor | None = None


def scan(
    source: Source,
    images: int,
    folder: Path,
    *,
    decode_size: int,
    keep: bool,
    threads: int,
    progress: Progress,
) -> None:
    """Decode images 0 .. `images` - 1 with `threads` threads, and write a `Scan`.

    keep: also write the pixels, unless they need more than half of the free disk space.
    Bad images are recorded and raise no error, so that ``data.on_error`` can change
    without another scan. Resumes an earlier attempt in `folder`.
    """
    is_compared = images <= MAX_COMPARED
    thumbnails = (images if is_compared else 0, 1, FINE, FINE)
    state = ScanProgress.load(folder, PIXELS, images, thumbnails)
    allowed = (shutil.disk_usage(folder).free + state.position.file_bytes) // 2
    start = state.position.images
    with (folder / PIXELS).open("ab") as file:
        decoder = _Decoder(source, decode_size, is_compared, keep)
        try:
            for index, image in enumerate(_decode_images(decoder, start, images, threads), start):
                if image.problem:
                    state.bad[str(index)] = image.problem
                else:
                    state.sizes[index], state.shapes[index] = image.size, image.shape
                    state.hashes[index] = image.hash
                    if image.thumbnail is not None:
                        state.thumbnails[index] = image.thumbnail
                state.add(image.pixels, file, limit=allowed if keep else -1)
                state.save_if_due(folder, file)
                progress(index + 1, images)
        except BaseException:
            with suppress(OSError):  # the disk may be full
                state.save(folder, file)
            raise
    _, size_bytes, file_bytes, _ = state.position
    kept = keep and file_bytes == size_bytes
    if not kept:
        (folder / PIXELS).unlink()
    np.save(folder / SIZES, state.sizes)
    np.save(folder / SHAPES, state.shapes)
    contents = PictureContents.compare(state.hashes, torch.from_numpy(state.thumbnails))
    np.save(folder / HASHES, contents.hashes)
    np.save(folder / SIMILAR, contents.similar)
    np.save(folder / THUMBNAILS, state.thumbnails.astype(np.float16))
    summary = Summary(decode_size, state.bad, kept, size_bytes)
    write_atomically(folder / RECORD, json.dumps(asdict(summary), indent=1))
    (folder / PROGRESS).unlink(missing_ok=True)


def read_scan(folder: Path) -> Scan:
    """Read the output of `scan`."""
    summary = read_record(folder / RECORD, Summary, expected=_EXPECTED)
    return parse_with(folder, lambda: _load_scan(folder, summary), expected=_EXPECTED)


def _load_scan(folder: Path, summary: Summary) -> Scan:
    sizes, shapes, hashes, similar = (
        np.load(folder / name) for name in (SIZES, SHAPES, HASHES, SIMILAR)
    )
    images = len(sizes)
    if sizes.shape != (images, 2) or shapes.shape != (images, 2) or len(hashes) != images:
        raise ValueError(
            f"its arrays have the shapes {sizes.shape}, {shapes.shape}, {hashes.shape}"
        )
    if wrong := [key for key in summary.bad if not key.isdecimal() or int(key) >= images]:
        raise ValueError(f"bad: {quote_some(wrong)} are not the numbers of {images:,} images")
    return Scan(summary, sizes, shapes, PictureContents(hashes, similar))


def read_thumbnails(folder: Path, images: int) -> Float[Tensor, "images 1 32 32"] | None:
    """Read the thumbnails that `scan` wrote; None if there are other than `images`, as
    for more than `MAX_COMPARED`, or if they can't be read.
    """
    try:
        thumbnails = torch.from_numpy(np.load(folder / THUMBNAILS)).float()
    except (OSError, ValueError):
        return None
    return thumbnails if thumbnails.shape == (images, 1, FINE, FINE) else None


def choose_typical_size(sizes: Int64[np.ndarray, "images 2"]) -> int:
    """Return a side length for models, given the sizes of the images.

    The side of the images if all are equal squares of up to 224 pixels; else the median
    of the shorter sides, rounded to a multiple of 32 between 32 and 224.
    """
    good = sizes[sizes[:, 0] > 0]
    if not len(good) or ((good == good[0, 0]).all() and good[0, 0] <= _LARGEST):
        return int(good[0, 0]) if len(good) else _STEP
    return min(max(round(float(np.median(good.min(axis=1))) / _STEP), 1) * _STEP, _LARGEST)


def note_aspect_ratio(sizes: Int64[np.ndarray, "images 2"]) -> tuple[str, ...]:
    """Return a note if most images are so far from square that a crop misses much."""
    good = sizes[sizes[:, 0] > 0]
    ratio = float(np.median(good.max(axis=1) / good.min(axis=1))) if len(good) else 1.0
    if ratio < _FAR_FROM_SQUARE:
        return ()
    return (
        f"Most images are far from square (the median ratio of their sides is {ratio:.1f}). In"
        f" validation and test, models see the square in the middle, {100 / ratio:.0f} % of the"
        " image. If the rest matters, cut the images into squares, or pad them to squares, first.",
    )


class _Decoder(NamedTuple):
    """Decodes an image by its number. is_compared: also make its thumbnail. keep:
    return its pixels; without them, hash and thumbnail are those of a draft.
    """

    source: Source
    decode_size: int
    is_compared: bool
    keep: bool

    def decode(self, index: int) -> _Decoded:
        try:
            return self._decode_pixels(index) if self.keep else self._decode_draft(index)
        except BadImageError as error:
            return _Decoded(error.reason or str(error))

    def _decode_pixels(self, index: int) -> _Decoded:
        image = self.source.read(index, shorter_side=self.decode_size)
        pixels = self._to_array(reduce_image(image, self.decode_size, stored=image.size))
        decoded = self._compare(pixels)
        height, width = pixels.shape[:2]
        return decoded._replace(
            size=(image.height, image.width), shape=(height, width), pixels=pixels
        )

    def _decode_draft(self, index: int) -> _Decoded:
        image, (width, height) = self.source.read_draft(
            index, shorter_side=self.decode_size, least_side=_LEAST_DRAFT
        )
        across, down = compute_reduced_size((width, height), self.decode_size)
        decoded = self._compare(self._to_array(image))
        return decoded._replace(size=(height, width), shape=(down, across))

    def _compare(self, pixels: UInt8[np.ndarray, "height width channels"]) -> _Decoded:
        thumbnail = make_thumbnail(pixels) if self.is_compared else None
        return _Decoded(hash=hash_picture(pixels), thumbnail=thumbnail)

    def _to_array(self, image: Image.Image) -> UInt8[np.ndarray, "height width channels"]:
        pixels = np.asarray(image)
        return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], self.source.channels))


def _decode_images(decoder: _Decoder, start: int, images: int, threads: int) -> Iterator[_Decoded]:
    """Yield decoded images in order; the queue is limited to 8 images per thread."""
    waiting: deque[Future[_Decoded]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for index in range(start, images):
                waiting.append(pool.submit(decoder.decode, index))
                if len(waiting) >= 8 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
