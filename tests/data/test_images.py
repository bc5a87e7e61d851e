"""Tests of decoding unusual and damaged image files."""

import io
import pickle
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from kd_app.config import RequestError
from kd_app.data import images
from kd_app.data.images import (
    BadImageError,
    convert_mode,
    decode_image,
    is_image_name,
    list_image_extensions,
    open_image,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners(width: int = 6, height: int = 3) -> Image.Image:
    """Build an image that looks different in each of the eight orientations.

    Red top left, green top right, blue bottom left, the rest black.
    """
    image = Image.new("RGB", (width, height))
    image.putpixel((0, 0), RED)
    image.putpixel((width - 1, 0), GREEN)
    image.putpixel((0, height - 1), BLUE)
    return image


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "ppm", "tga"])
def test_lossless_formats_return_the_stored_pixels(tmp_path: Path, ending: str) -> None:
    image = noise(13, 7)
    image.save(tmp_path / f"a.{ending}")
    opened = open_image(tmp_path / f"a.{ending}", 3)
    assert opened.mode == "RGB"
    assert (pixels(opened) == pixels(image)).all()


@pytest.mark.parametrize("ending", ["jpg", "webp", "gif", "jp2", "avif"])
def test_lossy_formats_return_nearly_the_stored_pixels(tmp_path: Path, ending: str) -> None:
    image = Image.radial_gradient("L").resize((64, 48)).convert("RGB")
    image.save(tmp_path / f"a.{ending}")
    opened = open_image(tmp_path / f"a.{ending}", 3)
    assert opened.size == (64, 48)
    assert np.abs(pixels(opened).astype(int) - pixels(image)).mean() < 4


def test_the_format_is_detected_by_content_not_by_extension(tmp_path: Path) -> None:
    corners().save(tmp_path / "a.jpg", format="png")
    assert (pixels(open_image(tmp_path / "a.jpg", 3)) == pixels(corners())).all()


def test_gray_files_become_three_equal_channels_and_color_files_one(tmp_path: Path) -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    ramp.save(tmp_path / "gray.png")
    assert (pixels(open_image(tmp_path / "gray.png", 3)) == pixels(ramp)[..., None]).all()
    corners().save(tmp_path / "color.png")
    opened = open_image(tmp_path / "color.png", 1)
    assert opened.mode == "L"
    assert [opened.getpixel(place) for place in ((0, 0), (5, 0), (0, 2))] == [
        76,
        150,
        29,
    ]  # ITU-R 601 luma of red, green, blue


def test_black_and_white_files_become_0_and_255(tmp_path: Path) -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png")
    assert pixels(open_image(tmp_path / "a.png", 1)).tolist() == [[0, 255]]


def test_transparent_pixels_are_white_and_half_transparent_ones_half_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (255, 0, 0, alpha))
    image.save(tmp_path / "a.png")
    assert pixels(open_image(tmp_path / "a.png", 3)).tolist() == [
        [[255, 255, 255], [255, 127, 127], [255, 0, 0]]
    ]


def test_gray_with_alpha_is_blended_with_white(tmp_path: Path) -> None:
    image = Image.new("LA", (2, 1))
    image.putpixel((0, 0), (10, 0))
    image.putpixel((1, 0), (10, 255))
    image.save(tmp_path / "a.png")
    assert pixels(open_image(tmp_path / "a.png", 1)).tolist() == [[255, 10]]


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
@pytest.mark.parametrize("ending", ["png", "gif"])
def test_a_transparent_palette_entry_is_white(
    tmp_path: Path, transparency: int | bytes, ending: str
) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / f"a.{ending}", transparency=transparency if ending == "png" else 0)
    assert pixels(open_image(tmp_path / f"a.{ending}", 3)).tolist() == [[list(WHITE), list(BLUE)]]


def test_a_transparent_color_of_a_file_without_alpha_is_white(tmp_path: Path) -> None:
    corners().save(tmp_path / "color.png", transparency=RED)
    opened = open_image(tmp_path / "color.png", 3)
    assert opened.getpixel((0, 0)) == WHITE
    assert opened.getpixel((5, 0)) == GREEN
    deep = Image.fromarray(np.array([[300, 65535, 0]], dtype=np.uint16))
    deep.save(tmp_path / "deep.png", transparency=300)
    assert pixels(open_image(tmp_path / "deep.png", 1)).tolist() == [[255, 255, 0]]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    opened = open_image(tmp_path / "a.jpg", 3)
    assert opened.mode == "RGB"
    assert np.abs(pixels(opened).astype(int) - RED).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tiff", "webp", "jpg"])
def test_the_exif_orientation_is_applied(tmp_path: Path, orientation: int, ending: str) -> None:
    upright = corners(48, 32).resize((480, 320), Image.Resampling.NEAREST)
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored.save(tmp_path / f"a.{ending}", exif=exif, lossless=True, quality=100, subsampling=0)
    opened = open_image(tmp_path / f"a.{ending}", 3)
    assert opened.size == upright.size
    assert np.abs(pixels(opened).astype(int) - pixels(upright)).max() <= (
        4 if ending == "jpg" else 0
    )
    assert opened.getexif().get(ExifTags.Base.Orientation, 1) == 1  # nobody turns it a second time
    assert open_image(tmp_path / f"a.{ending}", 3, shorter_side=40).size == (60, 40)


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    corners().save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert (pixels(open_image(tmp_path / "a.png", 3)) == pixels(corners())).all()


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, GREEN, BLUE)]
    for ending in ("gif", "webp", "tiff", "png"):
        frames[0].save(
            tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], lossless=True
        )
        assert (pixels(open_image(tmp_path / f"a.{ending}", 3)) == RED).all(), ending


@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    side=st.integers(1, 64),
    channels=st.sampled_from([1, 3]),
    ending=st.sampled_from(["jpeg", "bmp"]),
)
def test_the_shorter_side_is_bounded_and_nothing_is_enlarged(
    width: int, height: int, side: int, channels: int, ending: str
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), RED).save(buffer, ending)
    opened = decode_image(buffer, "a", channels, shorter_side=side)
    assert min(opened.size) == min(width, height, side)
    if min(width, height) <= side:
        assert opened.size == (width, height)
    else:
        longer = max(width, height) * side / min(width, height)
        assert abs(max(opened.size) - longer) <= 0.5


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((6, 3), 8, (6, 3)),
        ((10000, 30), 8, (2667, 8)),
        ((30, 10000), 1, (1, 333)),
        ((10000, 1), 1, (10000, 1)),
    ],
)
def test_extreme_shapes_keep_both_sides(
    tmp_path: Path, size: tuple[int, int], side: int, expected: tuple[int, int]
) -> None:
    Image.new("L", size, 7).save(tmp_path / "a.png")
    opened = open_image(tmp_path / "a.png", 1, shorter_side=side)
    assert opened.size == expected
    assert (pixels(opened) == 7).all()


def test_a_reduced_jpeg_is_close_to_a_resized_full_decode(tmp_path: Path) -> None:
    image = Image.radial_gradient("L").resize((1600, 1200), Image.Resampling.BICUBIC).convert("RGB")
    image.save(tmp_path / "a.jpg", quality=95)
    opened = open_image(tmp_path / "a.jpg", 3, shorter_side=60)
    assert opened.size == (80, 60)
    assert (
        np.abs(
            pixels(opened).astype(int) - pixels(image.resize((80, 60), Image.Resampling.LANCZOS))
        ).max()
        <= 4
    )


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "tiff", "gif", "ppm"])
def test_a_truncated_file_raises_an_error_with_name_and_fix(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"half.{ending}"
    noise(64, 64).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadImageError) as raised:
        open_image(path, 3)
    assert f"half.{ending}" in str(raised.value)
    assert "data.on_error=skip" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"<html>no image</html>", "not an image"), (b"\xff\xd8\xff", "damaged")],
)
def test_a_file_that_is_no_image_is_refused_with_the_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(BadImageError, match=reason):
        open_image(tmp_path / "x.jpg", 3)


def test_a_missing_file_and_a_folder_are_bad_images(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match="No such file"):
        open_image(tmp_path / "x.jpg", 3)
    with pytest.raises(BadImageError, match="not a regular file"):
        open_image(tmp_path, 3)


def png_of_zeros(width: int, height: int) -> bytes:
    """Build a small file that decodes to many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * height, 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_a_decompression_bomb_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of_zeros(20000, 10000))
    with pytest.raises(BadImageError, match=r"bomb\.png.*200000000 pixels"):
        open_image(tmp_path / "bomb.png", 1)


def test_a_large_image_below_the_limit_is_read_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    noise(50, 30).save(tmp_path / "large.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert open_image(tmp_path / "large.png", 3).size == (50, 30)
    assert not caught
    noise(50, 41).save(tmp_path / "too_large.png")
    with pytest.raises(BadImageError, match=r"2050 pixels"):
        open_image(tmp_path / "too_large.png", 3)


def test_postscript_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(BadImageError):
        open_image(tmp_path / "a.jpg", 3)
    assert not {".eps", ".ps", ".h5", ".mpg"} & list_image_extensions()


def test_image_names_are_recognized_in_any_case() -> None:
    assert all(
        is_image_name(name)
        for name in (
            "a.JPG",
            "b.jpeg",
            "c.Png",
            "d.webp",
            "e.bmp",
            "f.gif",
            "g.tif",
            "h.TIFF",
            "i.ppm",
            "j.pgm",
            "k.avif",
        )
    )
    assert not any(
        is_image_name(name)
        for name in (
            "a.txt",
            "jpg",
            ".jpg",
            "Thumbs.db",
            "a.jpg.part",
            "a.csv",
            "model.safetensors",
        )
    )


def test_the_result_has_no_metadata_and_can_be_pickled(tmp_path: Path) -> None:
    noise(8, 8).save(tmp_path / "a.jpg")
    opened = open_image(tmp_path / "a.jpg", 3)
    assert type(opened) is Image.Image
    assert not opened.info
    assert (pixels(pickle.loads(pickle.dumps(opened))) == pixels(opened)).all()


def test_many_threads_read_the_same_pixels(tmp_path: Path) -> None:
    noise(64, 48).save(tmp_path / "a.png")
    with ThreadPoolExecutor(8) as pool:
        result = list(pool.map(lambda _: open_image(tmp_path / "a.png", 3).tobytes(), range(200)))
    assert set(result) == {noise(64, 48).tobytes()}


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]
)
@pytest.mark.parametrize(("channels", "plain"), [(1, "L"), (3, "RGB")])
def test_every_mode_is_converted(mode: str, channels: int, plain: str) -> None:
    result = convert_mode(Image.new(mode, (3, 2)), channels)
    assert (result.mode, result.size) == (plain, (3, 2))


def test_a_bad_image_error_is_a_request_error() -> None:
    assert issubclass(BadImageError, RequestError)


def test_heic_is_read_where_pi_heif_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    plugin = SimpleNamespace(register_heif_opener=lambda: calls.append("registered"))
    monkeypatch.setitem(sys.modules, "pi_heif", plugin)
    images._register_heif()
    assert calls == ["registered"]
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    images._register_heif()


@pytest.mark.parametrize("name", ["a.mpo", "a.MPO", "a.avif", "a.jp2", "a.JFIF"])
def test_formats_of_cameras_have_an_image_name(name: str) -> None:
    assert is_image_name(name)


def test_mpo_files_are_read(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), RED).save(
        tmp_path / "a.mpo", save_all=True, append_images=[Image.new("RGB", (8, 8), BLUE)]
    )
    assert np.abs(pixels(open_image(tmp_path / "a.mpo", 3)).astype(int) - RED).max() <= 2
