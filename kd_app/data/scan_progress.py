"""The state of a scan of images, saved now and then, so that a scan that was stopped
goes on where it was.
"""

import io
import json
import os
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple, Self

import numpy as np
from jaxtyping import Int64, UInt64

from kd_app.files import replace_file

PROGRESS = "progress.npz"
_SECONDS_BETWEEN_SAVES = 20.0
_BLOCK = 2**24
_ARRAYS = ("sizes", "shapes", "hashes", "thumbnails")


class Position(NamedTuple):
    """images: number of scanned images. size_bytes: of their pixels. file_bytes, crc:
    size and CRC-32 of the pixels in the file, which is the first part of them if the
    disk is small.
    """

    images: int = 0
    size_bytes: int = 0
    file_bytes: int = 0
    crc: int = 0


class ScanProgress:
    """What is known of the images that were scanned; arrays for all images, and the
    reasons of bad images by number.
    """

    def __init__(self, images: int, thumbnails: tuple[int, ...]) -> None:
        self.sizes: Int64[np.ndarray, "images 2"] = np.zeros((images, 2), dtype=np.int64)
        self.shapes: Int64[np.ndarray, "images 2"] = np.zeros((images, 2), dtype=np.int64)
        self.hashes: UInt64[np.ndarray, " images"] = np.zeros(images, dtype=np.uint64)
        self.thumbnails: np.ndarray = np.zeros(thumbnails, dtype=np.float32)
        self.bad: dict[str, str] = {}
        self.position = Position()
        self._saved_at = time.monotonic()

    @classmethod
    def load(cls, folder: Path, pixels: str, images: int, thumbnails: tuple[int, ...]) -> Self:
        """The progress of an earlier attempt, whose `pixels` file is cut to what is
        known of it; an empty one if there is none, or if a file is damaged.
        """
        progress = cls(images, thumbnails)
        with suppress(Exception):  # a damaged file can raise any exception
            progress._read(folder, pixels)
            return progress
        for name in (PROGRESS, pixels):
            (folder / name).unlink(missing_ok=True)
        return cls(images, thumbnails)

    def _read(self, folder: Path, pixels: str) -> None:
        content = io.BytesIO((folder / PROGRESS).read_bytes())
        with np.load(content, allow_pickle=False) as arrays:
            position = Position(*arrays["position"].tolist())
            for name in _ARRAYS:
                known, whole = arrays[name], getattr(self, name)
                whole[: len(known)] = known
            bad = json.loads(arrays["bad"].tobytes())
        if _hash_start(folder / pixels, position.file_bytes) != position.crc:
            raise ValueError("the pixels have changed")
        os.truncate(folder / pixels, position.file_bytes)
        self.bad, self.position = dict(bad), position

    def add(self, picture: np.ndarray | None, file: IO[bytes], *, limit: int) -> None:
        """Count the next image, which is None if it is bad; write its pixels while all
        pixels so far take at most `limit` bytes.
        """
        images, size_bytes, file_bytes, crc = self.position
        if picture is not None:
            size_bytes += picture.size
            if file_bytes + picture.size == size_bytes <= limit:
                file.write(picture.data)
                file_bytes += picture.size
                crc = zlib.crc32(picture.data, crc)
        # one assignment: a signal can raise between any two
        self.position = Position(images + 1, size_bytes, file_bytes, crc)

    def save(self, folder: Path, file: IO[bytes]) -> None:
        """Write the progress and the pixels to disk."""
        position = self.position
        file.flush()
        os.fsync(file.fileno())
        known = {name: getattr(self, name)[: position.images] for name in _ARRAYS}
        bad = {key: text for key, text in self.bad.items() if int(key) < position.images}
        text = np.frombuffer(json.dumps(bad).encode(), dtype=np.uint8)
        with replace_file(folder / PROGRESS) as target:
            np.savez(target, position=np.array(position), bad=text, **known)
        self._saved_at = time.monotonic()

    def save_if_due(self, folder: Path, file: IO[bytes]) -> None:
        """Save if the last save is some time ago."""
        if time.monotonic() - self._saved_at >= _SECONDS_BETWEEN_SAVES:
            self.save(folder, file)


def _hash_start(path: Path, size: int) -> int:
    """The CRC-32 of the first `size` bytes of a file. Raises `ValueError` for a shorter
    file.
    """
    crc = 0
    with path.open("rb", buffering=0) as file:
        while size:
            block = file.read(min(_BLOCK, size))
            if not block:
                raise ValueError("the pixels are cut off")
            crc, size = zlib.crc32(block, crc), size - len(block)
    return crc
