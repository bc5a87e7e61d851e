"""Tests of color of 16 bits a channel; `test_deep_images` has those of gray."""

import io
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import ExifTags, Image

from kd_app.config import Decoding, InputSpec
from kd_app.data.bit_depth import find_deep_color, load_image
from kd_app.data.crop import Crop
from kd_app.data.crop_decoding import open_crop
from kd_app.data.images import open_image
from kd_app.data.preparation import prepare_image

FULL = np.random.default_rng(0).integers(0, 2**16, (5, 7, 4)).astype(np.uint16)
FULL[0, 0, :3] = 65535
Order = Literal["<", ">"]


def encode_png(values: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """Encode values ``[H, W, C]`` of 16 bits: gray and alpha, RGB or RGBA."""
    height, width, channels = values.shape
    color = {2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def encode_tiff(
    values: np.ndarray,
    order: Order = "<",
    *,
    deflate: bool = False,
    planes: bool = False,
    extra: int | None = None,
    orientation: int = 1,
) -> bytes:
    """Encode values ``[H, W, C]`` of 16 bits as a TIFF file.

    planes: channels one after the other. extra: meaning of the fourth channel.
    """
    height, width, channels = values.shape
    stored = values.astype(f"{order}u2")
    strips = [stored[..., each].tobytes() for each in range(channels)] if planes else []
    strips = strips or [stored.tobytes()]
    strips = [zlib.compress(each) for each in strips] if deflate else strips
    start = 1000
    offsets = [start + sum(map(len, strips[:each])) for each in range(len(strips))]
    tags: dict[int, list[int]] = {
        256: [width],
        257: [height],
        258: [16] * channels,
        259: [8 if deflate else 1],
        262: [2],
        273: offsets,
        274: [orientation],
        277: [channels],
        278: [height],
        279: [len(each) for each in strips],
        284: [2 if planes else 1],
    }
    if extra is not None:
        tags[338] = [extra]
    entries, later = b"", b""
    for tag, numbers in sorted(tags.items()):
        data = struct.pack(f"{order}{len(numbers)}H", *numbers)
        if len(data) > 4:
            later, data = later + data, struct.pack(f"{order}I", 500 + len(later))
        entries += struct.pack(f"{order}HHI", tag, 3, len(numbers)) + data.ljust(4, b"\0")
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HIH", 42, 8, len(tags)) + entries + bytes(4)
    return (head.ljust(500, b"\0") + later).ljust(start, b"\0") + b"".join(strips)


def read(content: bytes, path: Path, channels: int = 3) -> np.ndarray:
    path.write_bytes(content)
    return np.asarray(open_image(path, channels))


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("kind", ["png", "<", ">", "deflate"])
def test_color_of_any_depth_keeps_its_brightness(tmp_path: Path, bits: int, kind: Order) -> None:
    values = (FULL[..., :3] >> (16 - bits)).astype(np.uint16)
    content = {
        "png": encode_png(values),
        "deflate": encode_tiff(values, deflate=True),
    }.get(kind) or encode_tiff(values, kind)
    expected = np.rint(values * (255 / (2**bits - 1)))
    assert (read(content, tmp_path / "image") == expected).all()


@pytest.mark.parametrize("order", ["<", ">"])
def test_channels_one_after_the_other_are_read(tmp_path: Path, order: Order) -> None:
    values = FULL[..., :3] >> 4
    expected = np.rint(values * (255 / 4095))
    assert (read(encode_tiff(values, order, planes=True), tmp_path / "a") == expected).all()


@pytest.mark.parametrize("bits", [12, 16])
def test_alpha_of_16_bits_is_blended_with_white(tmp_path: Path, bits: int) -> None:
    values = FULL >> (16 - bits)
    values[:, :, 3] = [0, 2**bits - 1, 0, 2**bits - 1, 0, 0, 2**bits - 1]
    is_clear = values[..., 3:] == 0
    expected = np.where(is_clear, 255, np.rint(values[..., :3] * (255 / (2**bits - 1))))
    for content in (encode_png(values), encode_tiff(values, extra=2)):
        assert (read(content, tmp_path / "a") == expected).all()
    premultiplied = values * ~is_clear
    assert (read(encode_tiff(premultiplied, extra=1), tmp_path / "a") == expected).all()
    unused = np.rint(values[..., :3] * (255 / (2**bits - 1)))
    assert (read(encode_tiff(values, extra=0), tmp_path / "a") == unused).all()
    gray = encode_png(values[..., [0, 3]])
    assert (read(gray, tmp_path / "a", 1) == expected[..., 0]).all()


def test_a_transparent_color_of_16_bits_is_white(tmp_path: Path) -> None:
    values = np.array([[[300, 20, 4000], [300, 20, 4001], [4095, 0, 0]]], np.uint16)
    content = encode_png(values, (b"tRNS", struct.pack(">HHH", 300, 20, 4000)))
    assert read(content, tmp_path / "a").tolist() == [[[255] * 3, [19, 1, 249], [255, 0, 0]]]


def test_the_orientation_is_kept(tmp_path: Path) -> None:
    values = FULL[..., :3] >> 4
    upright = np.rint(values * (255 / 4095))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = np.ascontiguousarray(np.rot90(values))
    chunk = (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    for content in (encode_png(turned, chunk), encode_tiff(turned, orientation=6)):
        assert (read(content, tmp_path / "a") == upright).all()


def test_crops_and_single_images_have_the_same_colors(tmp_path: Path) -> None:
    values = np.full((24, 24, 3), (100, 2000, 4095), np.uint16)
    (tmp_path / "a.png").write_bytes(encode_png(values))
    crop = Crop(lambda width, height: (0, 0, width, height), (24, 24), Image.Resampling.BILINEAR)
    assert open_crop(tmp_path / "a.png", 3, crop).getpixel((5, 5)) == (6, 125, 255)
    with Image.open(tmp_path / "a.png") as image:
        spec = InputSpec(3, 24, 24, (0.5,) * 3, (0.5,) * 3)
        for _ in range(2):
            pixels = prepare_image(image, spec, Decoding(3, 64))
            assert pixels[:, 5, 5].tolist() == [6, 125, 255]
        assert find_deep_color(image) is not None
        image.load()
        assert find_deep_color(image) is None


def test_images_of_8_bits_are_decoded_as_they_are() -> None:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (1, 2, 3)).save(file, "png")
    image = Image.open(file)
    assert load_image(image) is image
    blank = Image.new("RGB", (3, 2))
    assert load_image(blank) is blank
