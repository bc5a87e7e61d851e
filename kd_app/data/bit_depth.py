"""Reduce pixels of more than 8 bits to 8 bits; needs only numpy and Pillow."""

import io
import re
import sys
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

_DEEP = re.compile(r"(RGB|RGBA|RGBX|RGBa|LA);16([BLN])")
"""Pillow's names for 16 bits a channel: the channels, and the order of the bytes."""

_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}

_BLOCK = 2**20
"""Pixels of more than 8 bits that are converted at a time."""


def load_image(image: Image.Image) -> Image.Image:
    """Decode an opened image, color of 16 bits a channel in 8 bits.

    Pillow keeps the high byte of such color, which leaves values of 12 bits nearly
    black. So the file is read again, and the color is scaled as `reduce_gray` scales
    gray; `image` stays undecoded. Of an image that is decoded already, the low bytes
    are lost.
    """
    layout = find_deep_color(image)
    if layout is None:
        image.load()
        return image
    channels, order = layout
    if channels == "LA":
        # Four bytes a pixel, which RGBA of 8 bits has too.
        again = [_open_in_layout(image, "RGBA")]
        high, low = (np.asarray(again[0])[..., start::2] for start in (0, 1))
    else:
        # With the other order of the bytes, Pillow keeps the low byte.
        orders = (order, _OTHER_ORDER[order])
        again = [_open_in_layout(image, f"{channels.upper()};16{each}") for each in orders]
        high, low = (np.asarray(each) for each in again)
    reduced = _reduce_color((high.astype(np.uint16) << 8) | low, channels, image)
    with suppress(Exception):  # Damaged metadata must not discard valid pixels.
        orientation = again[0].getexif()[ExifTags.Base.Orientation]
        reduced.getexif()[ExifTags.Base.Orientation] = orientation
    return reduced


def find_deep_color(image: Image.Image) -> tuple[str, str] | None:
    """Find the channels and the order of the bytes of color of 16 bits a channel.

    None for other images, and for those that are decoded already.
    """
    if not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return None
    if image.fp is None or image.fp.closed:
        return None
    match = _DEEP.fullmatch(_read_layout(image.tile[0].args))
    if match is not None:
        return match[1], match[2]
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or image.mode not in ("RGB", "RGBA"):
        return None
    if set(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, ())) != {16}:
        return None
    # For channels that are stored one after the other, Pillow omits the bits.
    return image.mode, "L" if image.tag_v2.prefix == b"II" else "B"


def _read_layout(arguments: object) -> str:
    """The first argument of a decoder, which is the layout for many of them."""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return str(first)


def _open_in_layout(image: Image.Image, layout: str) -> Image.Image:
    """Open the file of `image` from memory, to be decoded in another layout."""
    assert isinstance(image, ImageFile.ImageFile)
    assert image.fp is not None
    assert image.format is not None
    image.fp.seek(0)
    again = Image.open(io.BytesIO(image.fp.read()), formats=[image.format])
    again.seek(image.tell())
    for position, tile in enumerate(again.tile):
        stored = _read_layout(tile.args)
        # A single channel is named by its letter.
        name = stored + layout[layout.index(";") :] if len(stored) == 1 else layout
        arguments = (name, *tile.args[1:]) if isinstance(tile.args, tuple) else name
        again.tile[position] = tile._replace(args=arguments)
    return again


def _reduce_color(stored: NDArray[np.uint16], channels: str, image: Image.Image) -> Image.Image:
    color = stored[..., : 1 if channels == "LA" else 3]
    reduced = _scale(color)
    transparent = image.info.get("transparency")
    if isinstance(transparent, tuple):
        reduced[(color == np.array(transparent)).all(axis=-1)] = 255
    bands = [*np.moveaxis(reduced, -1, 0)]
    if color.shape != stored.shape:
        bands.append(_scale(stored[..., -1]))
    mode = channels.removesuffix("X")
    return Image.merge(mode, [Image.fromarray(np.ascontiguousarray(band)) for band in bands])


def _scale(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    low, high = _choose_value_range("I;16", float(values.min()), float(values.max()))
    mapped: np.ndarray = _map_linearly(np.arange(2**16, dtype=np.float32), low, high)[values]
    return mapped


def _map_linearly(values: NDArray[np.floating], low: float, high: float) -> NDArray[np.uint8]:
    mapped: np.ndarray = np.rint((values - low) * 255.0 / (high - low)).astype(np.uint8)
    return mapped


def reduce_gray(image: Image.Image) -> Image.Image:
    """Convert gray of more than 8 bits to mode 'L'; the transparent value is white.

    Values are mapped linearly to 0..255 from the smallest usual range that contains all
    of them; from 0..4095 if a TIFF file has 12 bits.
    """
    stored = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (0,))[0]
    if image.mode == "I" and bits == 32 and tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] == 1:
        # Pillow reads unsigned integers as signed ones.
        stored = stored.view(np.uint32)
    precision = np.float32 if image.mode.startswith("I;16") else np.float64
    # in blocks: a small file may declare many pixels, and these are 8 bytes each
    height = max(1, _BLOCK // stored.shape[1])
    blocks = [slice(start, start + height) for start in range(0, len(stored), height)]

    def read(rows: slice) -> NDArray[np.floating]:
        values: NDArray[np.floating] = np.nan_to_num(
            stored[rows].astype(precision), posinf=0.0, neginf=0.0
        )
        return values

    extremes = [(float(values.min()), float(values.max())) for values in map(read, blocks)]
    lows, highs = zip(*extremes, strict=True)
    low, high = _choose_value_range(image.mode, min(lows), max(highs))
    if bits == 12:
        low, high = 0.0, 4095.0
    gray = np.empty(stored.shape, np.uint8)
    for rows in blocks:
        gray[rows] = _map_linearly(read(rows), low, high)
    if image.mode.startswith("I;16") and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        # White is 0; Pillow inverts only 8-bit images.
        gray = 255 - gray
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[stored == transparent] = 255
    return Image.fromarray(gray)


def _choose_value_range(mode: str, least: float, greatest: float) -> tuple[float, float]:
    """The values that are mapped to 0 and 255."""
    # Files of 16 bits often hold 8 or 12 bits, which would be black in 0..65535.
    for full in (1.0, 255.0, 4095.0, 65535.0)[mode != "F" :]:
        if least >= 0 and greatest <= full:
            return 0.0, full
    return least, max(greatest, least + 1)
