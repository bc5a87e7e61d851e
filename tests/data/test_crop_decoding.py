"""Tests of the decoding of crops."""

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kd_app.config import InputSpec, RequestError
from kd_app.data.crop import Crop
from kd_app.data.crop_decoding import decode_crop, open_crop
from kd_app.data.folder import Folder
from kd_app.data.images import BadImageError, decode_image
from kd_app.data.loader import BatchRequest, TrainingLoader
from kd_app.data.module import ImageData
from kd_app.data.views import ResizedCrop
from tests.data.test_module import build_images

PIXELS = InputSpec(3, 24, 24, (0.5,) * 3, (0.5,) * 3)
BILINEAR, BICUBIC, LANCZOS = (
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)


def draw(width: int, height: int) -> Image.Image:
    """Smooth colors, so that JPEG and resizing change little."""
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [np.sin(9 * down + 5 * across), np.cos(7 * across), down - across]
    return Image.fromarray(np.stack([127 + 120 * wave for wave in waves], -1).astype(np.uint8))


def encode(image: Image.Image, kind: str = "jpeg", orientation: int = 1) -> io.BytesIO:
    exif = Image.Exif()
    exif[0x112] = orientation
    file = io.BytesIO()
    image.save(file, kind, exif=exif, **({"quality": 95} if kind == "jpeg" else {}))
    return file


def crop(size: tuple[int, int] = (24, 32), resampling: Any = BILINEAR, **part: Any) -> Crop:
    """The part from a tenth to nine tenths of each side."""
    return Crop(
        lambda width, height: (width // 10, height // 10, width * 8 // 10, height * 8 // 10),
        size,
        resampling,
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_crop_is_the_crop_of_the_upright_image(orientation: int, channels: int) -> None:
    file = encode(draw(320, 256), orientation=orientation)
    exact = crop().apply(decode_image(file, "", channels))
    fast = decode_crop(file, "", channels, crop())
    assert (fast.mode, fast.size) == (exact.mode, (24, 32))
    difference = np.abs(np.asarray(fast, dtype=int) - np.asarray(exact, dtype=int))
    assert difference.mean() < 2, difference.mean()


@pytest.mark.parametrize("resampling", [BILINEAR, BICUBIC, LANCZOS])
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_other_formats_are_decoded_whole(kind: str, resampling: Any) -> None:
    file = encode(draw(66, 50), kind)
    exact = crop(resampling=resampling).apply(decode_image(file, "", 3))
    fast = decode_crop(file, "", 3, crop(resampling=resampling))
    # At the border of the crop, PIL also reads pixels outside the box.
    difference = np.abs(np.asarray(fast, dtype=int) - np.asarray(exact, dtype=int))
    assert difference[2:-2, 2:-2].max() <= 1


@pytest.mark.parametrize(
    ("needed", "decoded"), [((64, 48), (320, 240)), ((32, 24), (160, 120)), ((12, 9), (40, 30))]
)
def test_a_jpeg_is_decoded_at_the_scale_that_the_crop_needs(
    monkeypatch: pytest.MonkeyPatch, needed: tuple[int, int], decoded: tuple[int, int]
) -> None:
    sizes: list[tuple[int, int]] = []

    def record(image: Image.Image, channels: int) -> Image.Image:
        plain = image.convert("RGB")
        sizes.append(plain.size)
        return plain

    monkeypatch.setattr("kd_app.data.crop_decoding.convert_mode", record)
    part = Crop(lambda width, height: (64, 48, 100, 72), needed, BILINEAR)
    assert decode_crop(encode(draw(320, 240)), "", 3, part).size == needed
    assert sizes == [decoded]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    content = encode(draw(330, 250)).getvalue()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    for name in ("half.jpg", "none.jpg"):
        with pytest.raises(BadImageError, match=name):
            open_crop(tmp_path / name, 3, crop())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos")
    for number in range(12):
        (path / "ab"[number % 2]).mkdir(exist_ok=True)
        draw(90 + number, 70).save(path / "ab"[number % 2] / f"{number:02}.jpg", quality=95)
    return path


def load(folder: Path, scan: Path, **changes: Any) -> ImageData:
    view = ResizedCrop(scale=(0.5, 1.0), ratio=(0.75, 1.33), flip=True, jitter=0.0)
    source = partial(Folder, channels=3, class_level=None)
    data = build_images(source, **{"root": folder, "view": view, **changes})
    data.list()
    job = data.scan_job(32)
    assert job is not None
    if not (scan / "scan.json").exists():
        job.run(scan, lambda done, total: None)
    data.load(scan)
    data.bind(PIXELS, order_seed=0)
    return data


def read(loader: TrainingLoader, data: ImageData) -> np.ndarray:
    batch = loader.builder[BatchRequest(0, data.list_rows("train"))]
    return batch.image.numpy()


def test_only_training_views_without_a_cache_are_decoded_fast(folder: Path, tmp_path: Path) -> None:
    for name in ("kept", "none"):
        (tmp_path / name).mkdir()
    cached = load(folder, tmp_path / "kept", decoder="fast")
    exact = load(folder, tmp_path / "none", cache="none", decoder="exact")
    fast = load(folder, tmp_path / "none", cache="none", decoder="fast")
    images = [read(data.train_dataloader(), data) for data in (cached, exact, fast)]
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[1], images[2])
    tests = [next(iter(data.build_evaluation_loader("test", PIXELS))) for data in (cached, fast)]
    assert np.array_equal(tests[0].image, tests[1].image)
    identities = [data.describe_identity(for_teacher=False) for data in (cached, exact, fast)]
    assert identities[0] == identities[1]
    assert identities[2] == {**identities[0], "decoder": "crop-1"}


def test_an_unknown_decoder_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match="decoder='quick'"):
        build_images(partial(Folder, channels=3, class_level=None), root=folder, decoder="quick")
