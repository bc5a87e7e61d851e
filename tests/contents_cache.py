"""Copies among images in memory, looked for once for the same pixels within a process
of tests: most tests read the same digits, and comparing them takes 50 ms.
"""

from hashlib import sha256
from unittest.mock import patch

from torch import Tensor

from kd_app.data.duplicates import PictureContents

_read = PictureContents.read
_kept: dict[tuple[tuple[int, ...], bytes], PictureContents] = {}


def _read_once(pixels: Tensor) -> PictureContents:
    """Compare the images, or return what is known about them, which nobody changes."""
    key = tuple(pixels.shape), sha256(pixels.numpy().tobytes()).digest()
    if key not in _kept:
        contents = _read(pixels)
        for array in contents:
            array.flags.writeable = False
        _kept[key] = contents
    return _kept[key]


def keep_contents() -> None:
    """Look for copies once for the same pixels from now on."""
    patch.object(PictureContents, "read", _read_once).start()
