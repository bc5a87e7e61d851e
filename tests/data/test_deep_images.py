"""Image files with more than 8 bits a pixel."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_app.data import bit_depth
from kd_app.data.images import BadImageError, convert_mode, open_image


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


@pytest.mark.parametrize("ending", ["png", "tiff", "pgm"])
def test_a_16_bit_ramp_maps_linearly(tmp_path: Path, ending: str) -> None:
    ramp = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(ramp).save(tmp_path / f"a.{ending}")
    opened = open_image(tmp_path / f"a.{ending}", 1)
    assert opened.mode == "L"
    assert (pixels(opened) == np.rint(ramp / 257)).all()
    assert pixels(open_image(tmp_path / f"a.{ending}", 3)).shape == (32, 32, 3)


def test_a_dark_16_bit_image_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 5140, dtype=np.uint16)).save(tmp_path / "a.png")
    assert (pixels(open_image(tmp_path / "a.png", 1)) == 20).all()


@pytest.mark.parametrize("ending", ["png", "tiff"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("full", [255, 4095, 65535])
def test_8_12_and_16_bits_in_a_larger_type_are_not_black(
    tmp_path: Path, ending: str, dtype: type, full: int
) -> None:
    if ending == "png" and dtype != np.uint16:
        return
    values: np.ndarray = (np.linspace(0, full, 256).reshape(16, 16)).astype(dtype)
    Image.fromarray(values).save(tmp_path / f"a.{ending}")
    expected = np.rint(values.astype(float) * 255 / full)
    assert np.abs(pixels(open_image(tmp_path / f"a.{ending}", 1)) - expected).max() <= 1


def write_tiff(path: Path, data: bytes, bits: int, *, white: int = 255) -> None:
    """Write a gray TIFF of 2x1 pixels, unsigned, little-endian."""
    rows = ((256, 2), (257, 1), (258, bits), (259, 1), (262, white // 255), (273, 134), (277, 1))
    tags = (*rows, (278, 1), (279, len(data)), (339, 1))
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + b"\0\0\0\0"
    path.write_bytes(head + data)


@pytest.mark.parametrize(
    ("data", "bits", "white"),
    [
        (bytes([0x10, 0x0F, 0xFF]), 12, 255),  # 256 and 4095
        (np.array([4112, 65535], dtype="<u2").tobytes(), 16, 255),
        (np.array([61423, 0], dtype="<u2").tobytes(), 16, 0),
        (np.array([2**28, 2**32 - 1], dtype="<u4").tobytes(), 32, 255),
    ],
)
def test_tiff_files_of_any_depth_keep_their_brightness(
    tmp_path: Path, data: bytes, bits: int, white: int
) -> None:
    write_tiff(tmp_path / "a.tif", data, bits, white=white)
    dark, bright = pixels(open_image(tmp_path / "a.tif", 1))[0]
    assert bright == 255
    assert dark in ((0,) if bits == 32 else (16,))


def test_a_tiff_of_a_kind_that_is_not_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", bytes(16), 64)
    with pytest.raises(BadImageError, match="convert it to 8 or 16 bits"):
        open_image(tmp_path / "a.tif", 1)


def test_big_endian_16_bit_files_are_read_as_such(tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535]], dtype=">u2")
    tags = [
        (256, 3),
        (257, 1),
        (258, 16),
        (259, 1),
        (262, 1),
        (273, 200),
        (277, 1),
        (278, 1),
        (279, 6),
    ]
    entries = b"".join(
        struct.pack(
            ">HHII" if tag in (273, 279) else ">HHIHxx",
            tag,
            4 if tag in (273, 279) else 3,
            1,
            value,
        )
        for tag, value in tags
    )
    head = struct.pack(">2sHIH", b"MM", 42, 8, len(tags)) + entries + b"\0\0\0\0"
    (tmp_path / "a.tif").write_bytes(head.ljust(200, b"\0") + values.tobytes())
    assert pixels(open_image(tmp_path / "a.tif", 1)).tolist() == [[0, 1, 255]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.5, 1], [0, 128, 255]),
        ([0, 100, 255], [0, 100, 255]),
        ([0, 257, 65535], [0, 1, 255]),
        ([-10, 0, 10], [0, 128, 255]),
        ([np.nan, 1, 0], [0, 255, 0]),
    ],
)
def test_float_images_are_scaled_by_the_smallest_common_range(
    tmp_path: Path, values: list[float], expected: list[int]
) -> None:
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "a.tiff")
    assert pixels(open_image(tmp_path / "a.tiff", 1)).tolist() == [expected]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 257, 65535], [0, 1, 255]),
        ([-100, 0, 100], [0, 128, 255]),
        ([0, 70000, 140000], [0, 128, 255]),
    ],
)
def test_32_bit_integers_are_scaled_as_16_bit_or_by_their_range(
    tmp_path: Path, values: list[int], expected: list[int]
) -> None:
    Image.fromarray(np.array([values], dtype=np.int32)).save(tmp_path / "a.tiff")
    assert pixels(open_image(tmp_path / "a.tiff", 1)).tolist() == [expected]


@pytest.mark.parametrize("mode", ["F", "I;16"])
def test_values_of_more_than_8_bits_are_converted_block_by_block(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).integers(0, 9000, (7, 5))
    image = Image.fromarray(values.astype(np.float32 if mode == "F" else np.uint16))
    expected = pixels(convert_mode(image, 1))
    for block in (1, 10, 12):
        monkeypatch.setattr(bit_depth, "_BLOCK", block)
        assert (pixels(convert_mode(image, 1)) == expected).all()
