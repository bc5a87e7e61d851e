"""Every image of a source looked at once: which can't be read, how large they are, and
their pixels, kept so that no epoch decodes them again.
"""

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from kd_app.data.images import BadImageError
from kd_app.data.source import Source
from kd_app.stages import write_atomically

PIXELS, SIZES, SHAPES, RECORD = "pixels.bin", "sizes.npy", "shapes.npy", "scan.json"

_LARGEST, _STEP = 224, 32
"""Sides of the models that are made for images of many sizes."""

Progress = Callable[[int, int], None]
"""Called with the number of images done and of all."""


@dataclass(frozen=True)
class Summary:
    """What ``scan.json`` holds. bad: image number -> why it can't be read. kept: the
    pixels are in ``pixels.bin``, `size_bytes` of them.
    """

    decode_size: int
    bad: dict[str, str]
    kept: bool
    size_bytes: int


class Scan(NamedTuple):
    """A finished scan. sizes, shapes: ``[N, 2]``, height and width of each image in the
    file and as decoded; 0 for bad images.
    """

    summary: Summary
    sizes: Int64[np.ndarray, "images 2"]
    shapes: Int64[np.ndarray, "images 2"]


class _Decoded(NamedTuple):
    """pixels: ``[height, width, channels]``, or None and `problem`; size: height and
    width in the file.
    """

    pixels: UInt8[np.ndarray, "height width channels"] | None
    size: tuple[int, int]
    problem: str


def bound_size(image: Image.Image, decode_size: int) -> Image.Image:
    """The image with a shorter side of at most `decode_size` (bicubic, antialiased);
    one that is smaller stays as it is.
    """
    shorter = min(image.size)
    if shorter <= decode_size:
        return image
    width, height = (max(decode_size, round(side * decode_size / shorter)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


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
    """Decode images 0 .. `images` - 1 with `threads` threads and write what was found
    into `folder`.

    keep: write the pixels too, unless they take more than half of the disk's free
    space. Bad images are recorded, not raised: whether they end the run is asked later,
    so that the answer can change without another scan.
    """
    sizes, shapes = (np.zeros((images, 2), dtype=np.int64) for _ in range(2))
    bad: dict[str, str] = {}
    allowed = shutil.disk_usage(folder).free // 2
    size_bytes = 0
    with (folder / PIXELS).open("wb") as file:
        for index, found in enumerate(_decode_images(source, images, decode_size, threads)):
            if found.pixels is None:
                bad[str(index)] = found.problem
            else:
                sizes[index], shapes[index] = found.size, found.pixels.shape[:2]
                size_bytes += found.pixels.size
                if keep and size_bytes <= allowed:
                    file.write(found.pixels.data)
            progress(index + 1, images)
    kept = keep and size_bytes <= allowed
    if not kept:
        (folder / PIXELS).unlink()
    np.save(folder / SIZES, sizes)
    np.save(folder / SHAPES, shapes)
    write_atomically(
        folder / RECORD, json.dumps(asdict(Summary(decode_size, bad, kept, size_bytes)), indent=1)
    )


def read_scan(folder: Path) -> Scan:
    """What `scan` wrote."""
    return Scan(
        Summary(**json.loads((folder / RECORD).read_text(encoding="utf-8"))),
        np.load(folder / SIZES),
        np.load(folder / SHAPES),
    )


def choose_typical_size(sizes: Int64[np.ndarray, "images 2"]) -> int:
    """The side of images that are all equal squares of up to 224 pixels; else the
    median shorter side, rounded to a multiple of 32 from 32 to 224.
    """
    good = sizes[sizes[:, 0] > 0]
    if not len(good) or ((good == good[0, 0]).all() and good[0, 0] <= _LARGEST):
        return int(good[0, 0]) if len(good) else _STEP
    return min(max(round(float(np.median(good.min(axis=1))) / _STEP), 1) * _STEP, _LARGEST)


def _decode_images(
    source: Source, images: int, decode_size: int, threads: int
) -> Iterator[_Decoded]:
    """In order; a few images a thread are under way, so that memory stays small."""
    waiting: deque[Future[_Decoded]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for index in range(images):
                waiting.append(pool.submit(_decode, source, index, decode_size))
                if len(waiting) >= 8 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _decode(source: Source, index: int, decode_size: int) -> _Decoded:
    try:
        image = source.read(index, shorter_side=decode_size)
    except BadImageError as error:
        return _Decoded(None, (0, 0), str(error))
    pixels = np.asarray(bound_size(image, decode_size))
    return _Decoded(
        np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], source.channels)),
        (image.height, image.width),
        "",
    )
