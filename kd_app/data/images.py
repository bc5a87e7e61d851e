"""From a file to 8-bit gray or color pixels, whatever the file holds; needs numpy and
Pillow alone.
"""

import warnings
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from kd_app.config.errors import RequestError

_NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow knows by name and can't decode by itself (EPS would run
Ghostscript on the file).
"""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the stored pixels upright."""


class BadImageError(RequestError):
    """An image that can't be read: which file, why, and that ``data.on_error=skip``
    leaves such files out. reason: why, alone.
    """

    reason: str = ""


@cache
def _list_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name not in _NOT_READ)


@cache
def list_image_extensions() -> frozenset[str]:
    """The endings ('.jpg', '.png' ..., lower case) of the files that `open_image`
    reads.
    """
    readable = set(_list_formats())
    return frozenset(
        ending for ending, name in Image.registered_extensions().items() if name in readable
    )


def is_image_name(name: str) -> bool:
    """Whether the name ends as an image's does, in any case."""
    return Path(name).suffix.lower() in list_image_extensions()


def open_image(path: Path, channels: int, *, shorter_side: int | None = None) -> Image.Image:
    """The image in `path`, upright by its EXIF orientation, in mode 'L' (`channels` =
    1) or 'RGB' (3).

    What is transparent lies on white, as a browser shows it. Gray of 16 bits is scaled
    linearly (65535 -> 255); integers of 32 bits too where they fit in 16, else from
    their own least to their greatest value; floats by the least of the ranges 0..1,
    0..255, 0..65535 that holds them, else from least to greatest. Of animations and
    many-page files the first frame counts. Color profiles are not applied.
    `shorter_side` reduces the image until its shorter side has that many pixels; it
    never enlarges. Raises `BadImageError`: no image, truncated, too many pixels (twice
    `PIL.Image.MAX_IMAGE_PIXELS`), not there. Safe to call from threads.
    """
    try:
        with path.open("rb") as file:
            return decode_image(file, str(path), channels, shorter_side=shorter_side)
    except OSError as error:
        raise _build_bad_image_error(str(path), error) from error


def decode_image(
    file: BinaryIO, name: str, channels: int, *, shorter_side: int | None = None
) -> Image.Image:
    """As `open_image`, from an open file; `name` is what an error calls it."""
    _silence_pillow()
    try:
        return _decode(file, channels, shorter_side)
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise _build_bad_image_error(name, error) from error


def convert_mode(image: Image.Image, channels: int) -> Image.Image:
    """A copy in mode 'L' or 'RGB', what is transparent on white; not turned. Ranges as
    in `open_image`.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _reduce_to_eight_bits(image)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    plain = image.convert("L" if channels == 1 else "RGB")
    plain.info.clear()
    return plain


def _decode(file: BinaryIO, channels: int, shorter_side: int | None) -> Image.Image:
    with Image.open(file, formats=_list_formats()) as image:
        stored = image.size
        # JPEG alone: decodes at 1/2, 1/4 or 1/8, still twice as large as needed; the
        # filter below does the rest
        drafted = shorter_side and image.draft(
            "L" if channels == 1 else "RGB", (2 * shorter_side, 2 * shorter_side)
        )
        image.load()
        if min(image.size) < 1:
            raise ValueError("it has no pixels")
        turn = _UPRIGHT.get(_read_orientation(image))
        plain = convert_mode(image, channels)
        if shorter_side is not None:
            plain = _reduce(plain, stored if drafted else image.size, shorter_side)
    return plain if turn is None else plain.transpose(turn)


def _read_orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata around pixels that are whole
        return 1


def _reduce(image: Image.Image, stored: tuple[int, int], shorter_side: int) -> Image.Image:
    """An image that was `stored` with that size, perhaps decoded smaller, as small as
    asked: the shape is that of what was stored.
    """
    shorter = min(stored)
    if shorter <= shorter_side:
        return image
    width, height = (max(shorter_side, round(side * shorter_side / shorter)) for side in stored)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _reduce_to_eight_bits(image: Image.Image) -> Image.Image:
    """Mode 'L' of gray with more bits; a transparent gray value (PNG's tRNS) becomes
    white.
    """
    stored = np.asarray(image)
    values = np.nan_to_num(
        stored.astype(np.float32 if image.mode.startswith("I;16") else np.float64),
        posinf=0.0,
        neginf=0.0,
    )
    low, high = _choose_value_range(image.mode, float(values.min()), float(values.max()))
    gray = np.rint((values - low) * 255.0 / (high - low)).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        gray[stored == clear] = 255
    return Image.fromarray(gray)


def _choose_value_range(mode: str, least: float, greatest: float) -> tuple[float, float]:
    """The values that become 0 and 255."""
    for full in (1.0, 255.0, 65535.0) if mode == "F" else (65535.0,):
        if least >= 0 and greatest <= full:
            return 0.0, full
    return least, max(greatest, least + 1)


def _silence_pillow() -> None:
    """Turn Pillow's own warnings (large image, odd metadata) off: an image is read or
    it is an error.

    By a filter for the process: `warnings.catch_warnings` is not safe in threads.
    Whoever resets the filters finds it set again by the next image.
    """
    if not any(
        action == "ignore" and getattr(module, "pattern", None) == r"PIL\."
        for action, _, _, module, _ in warnings.filters
    ):
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _build_bad_image_error(name: str, error: Exception) -> BadImageError:
    reason = _explain_failure(error)
    told = BadImageError(
        f"The image {name!r} can't be read: {reason}. Expected: a whole file of a format that"
        " Pillow reads (JPEG, PNG, WebP, TIFF ...). To fix it, replace or remove the file, or set"
        " data.on_error=skip, which leaves such files out and counts them."
    )
    told.reason = reason
    return told


def _explain_failure(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is empty, damaged at its beginning, or no image at all"
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"it claims more pixels than is safe to decode ({str(error).split(',', maxsplit=1)[0]})"
        )
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}".rstrip(". ").replace("\n", " ")
