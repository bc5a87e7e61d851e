"""Decode image files to 8-bit gray or color pixels; needs only numpy and Pillow."""

import os
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from PIL import ExifTags, Image, UnidentifiedImageError

from kd_app.config.errors import RequestError
from kd_app.config.regular_file import open_regular
from kd_app.data.bit_depth import load_image, reduce_gray

T = TypeVar("T")

_NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow lists but can't decode by itself (EPS would run Ghostscript)."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transposition that turns the stored pixels upright."""


SWAPPING = frozenset(_UPRIGHT[orientation] for orientation in (5, 6, 7, 8))
"""Transpositions that swap width and height."""

_SIGNATURES = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "GIF": re.compile(rb"GIF8[79]a"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    # The reserved bytes of a bitmap are 0; text may begin with BM.
    "BMP": re.compile(rb"BM....\0\0\0\0", re.DOTALL),
    "AVIF": re.compile(rb"....ftypavi[fs]", re.DOTALL),
    "HEIF": re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL),
    "JPEG2000": re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP {2}\r\n\x87\n"),
}


class Draft(NamedTuple):
    """An image that was decoded at a small scale. size: (width, height) of the image
    that `open_image` returns for the same file.
    """

    image: Image.Image
    size: tuple[int, int]


class _OtherTiffError(UnidentifiedImageError):
    def __str__(self) -> str:
        return (
            "it is a damaged TIFF, or one that Pillow can't read (color of 10, 12 or 32 bits, or"
            " 64-bit values); convert it to 8 or 16 bits"
        )


class BadImageError(RequestError):
    """An image that can't be read; the message includes file, reason and remedies.

    reason: the reason without the rest of the message.
    """

    reason: str = ""


@cache
def _list_formats() -> tuple[str, ...]:
    Image.init()
    _register_heif()
    return tuple(name for name in Image.ID if name not in _NOT_READ)


def _register_heif() -> None:
    """Let Pillow read HEIC if the extra "heic" is installed."""
    with suppress(ImportError):
        import_module("pi_heif").register_heif_opener()


@cache
def list_image_extensions() -> frozenset[str]:
    """Return the extensions that `open_image` reads ('.jpg' ..., lower case)."""
    # Pillow opens MPO, the format of many cameras, as JPEG.
    readable = {*_list_formats(), "MPO"}
    return frozenset(
        extension for extension, name in Image.registered_extensions().items() if name in readable
    )


def is_image_name(name: str) -> bool:
    """Whether the name has an image extension, in lower or upper case."""
    return os.path.splitext(name)[1].lower() in list_image_extensions()


def find_image_signature(path: str) -> str | None:
    """Return the format that the first bytes of a file have; None if it isn't read."""
    try:
        with open_regular(path) as file:
            head = file.read(16)
    except OSError:
        return None
    names = (name for name, pattern in _SIGNATURES.items() if pattern.match(head))
    return next((name for name in names if name in _list_formats()), None)


def open_image(path: Path, channels: int, *, shorter_side: int | None = None) -> Image.Image:
    """Return the image in `path`, upright, in mode 'L' (`channels` = 1) or 'RGB' (3).

    The EXIF orientation is applied; color profiles are not. Transparent pixels are
    blended with white, as in a browser. Of animations and multi-page files, the first
    frame is read. Values of more than 8 bits are mapped linearly to 0..255 from the
    range that a TIFF file of 12 bits has; else from the smallest of 0..255, 0..4095,
    0..65535, and for floats 0..1, that contains all values; else from the range of the
    image's values.

    shorter_side: larger images are reduced until their shorter side has that many
    pixels. Raises `BadImageError`: no file, no image, truncated, too many pixels (more
    than twice `PIL.Image.MAX_IMAGE_PIXELS`). Thread-safe.
    """
    try:
        with open_regular(path) as file:
            return decode_image(file, str(path), channels, shorter_side=shorter_side)
    except OSError as error:
        raise build_bad_image_error(str(path), error) from error


def decode_image(
    file: BinaryIO, name: str, channels: int, *, shorter_side: int | None = None
) -> Image.Image:
    """Decode an open file as `open_image` does; `name` is for error messages."""
    return decode_with(file, name, lambda image: convert_image(image, channels, shorter_side))


def decode_with(file: BinaryIO, name: str, convert: Callable[[Image.Image], T]) -> T:
    """Return `convert` of the image in an open file, which is not decoded yet.

    Raises `BadImageError`, with `name` in the message, for any failure.
    """
    _silence_pillow()
    try:
        with Image.open(file, formats=_list_formats()) as image:
            return convert(image)
    except UnidentifiedImageError as error:
        file.seek(0)
        is_tiff = _SIGNATURES["TIFF"].match(file.read(4))
        raise build_bad_image_error(name, _OtherTiffError() if is_tiff else error) from error
    except Exception as error:
        # Decoders raise nearly any exception for damaged files.
        raise build_bad_image_error(name, error) from error


def convert_image(
    image: Image.Image, channels: int, shorter_side: int | None = None
) -> Image.Image:
    """Convert an opened image as `open_image` does. `image` may be decoded smaller."""
    stored = image.size
    # Only JPEG supports drafts, at 1/2, 1/4 or 1/8 of the size. The draft is at least
    # twice as large as needed, so that the filter below determines quality.
    drafted = shorter_side and image.draft(
        "L" if channels == 1 else "RGB", (2 * shorter_side, 2 * shorter_side)
    )
    image = load_image(image)
    if min(image.size) < 1:
        raise ValueError("it has no pixels")
    turn = find_turn(image)
    plain = convert_mode(image, channels)
    if shorter_side is not None:
        plain = reduce_image(plain, shorter_side, stored=stored if drafted else image.size)
    return plain if turn is None else plain.transpose(turn)


def open_draft(path: Path, channels: int, *, shorter_side: int, least_side: int) -> Draft:
    """Decode an image fast, with at least `least_side` pixels on the shorter side if it
    has as many; else as `open_image` with `shorter_side`.
    """
    try:
        with open_regular(path) as file:
            return decode_with(
                file,
                str(path),
                lambda image: _convert_draft(image, channels, shorter_side, least_side),
            )
    except OSError as error:
        raise build_bad_image_error(str(path), error) from error


def _convert_draft(image: Image.Image, channels: int, shorter_side: int, least_side: int) -> Draft:
    stored = image.size
    is_drafted = image.draft("L" if channels == 1 else "RGB", (least_side, least_side))
    image = load_image(image)
    if min(image.size) < 1:
        raise ValueError("it has no pixels")
    turn = find_turn(image)
    plain = convert_mode(image, channels)
    size = compute_reduced_size(stored if is_drafted else image.size, shorter_side)
    plain = plain.reduce(max(1, min(plain.size) // least_side))
    return (
        Draft(plain, size) if turn is None else Draft(plain.transpose(turn), _turn_size(size, turn))
    )


def _turn_size(size: tuple[int, int], turn: Image.Transpose) -> tuple[int, int]:
    return size[::-1] if turn in SWAPPING else size


def convert_mode(image: Image.Image, channels: int) -> Image.Image:
    """Return a copy in mode 'L' (`channels` = 1) or 'RGB' (3), not rotated.

    Transparency and value ranges are converted as in `open_image`.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = reduce_gray(image)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    plain = image.convert("L" if channels == 1 else "RGB")
    plain.info.clear()
    return plain


def find_turn(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition that turns the stored pixels upright; None for none."""
    try:
        return _UPRIGHT.get(int(image.getexif().get(ExifTags.Base.Orientation, 1)))
    except Exception:
        # Damaged metadata must not discard valid pixels.
        return None


def reduce_image(image: Image.Image, shorter_side: int, *, stored: tuple[int, int]) -> Image.Image:
    """Reduce an image to `shorter_side`, with the aspect ratio of its `stored` size.

    The image may have been decoded at a smaller size than `stored`.
    """
    if min(stored) <= shorter_side:
        return image
    size = compute_reduced_size(stored, shorter_side)
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def compute_reduced_size(stored: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    """Return (width, height) of an image that is reduced to `shorter_side`."""
    shorter = min(stored)
    if shorter <= shorter_side:
        return stored
    width, height = (max(shorter_side, round(side * shorter_side / shorter)) for side in stored)
    return width, height


def _silence_pillow() -> None:
    """Turn off Pillow's warnings (large image, odd metadata) in this process."""
    # `warnings.catch_warnings` is not thread-safe. The filter is checked for each
    # image, because other code may reset the filters.
    if not any(
        action == "ignore" and getattr(module, "pattern", None) == r"PIL\."
        for action, _, _, module, _ in warnings.filters
    ):
        warnings.filterwarnings("ignore", module=r"PIL\.")


def build_bad_image_error(name: str, error: Exception) -> BadImageError:
    """Build the error for the image file `name`, whose decoding raised `error`."""
    reason = _explain_failure(error)
    bad_image = BadImageError(
        f"The image {name!r} can't be read: {reason}. Expected: a complete file of a format that"
        " Pillow reads (JPEG, PNG, WebP, TIFF ...). Replace or remove the file, or set"
        " data.on_error=skip, which leaves such files out and counts them."
    )
    bad_image.reason = reason
    return bad_image


def _explain_failure(error: Exception) -> str:
    if isinstance(error, _OtherTiffError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "it is empty, damaged at its beginning, or not an image"
    if isinstance(error, Image.DecompressionBombError):
        details = str(error).split(",", maxsplit=1)[0]
        return f"its header declares more pixels than is safe to decode ({details})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}".rstrip(". ").replace("\n", " ")
