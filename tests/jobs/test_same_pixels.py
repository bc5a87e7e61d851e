"""Whatever classifies an image file sees the pixels of the evaluation."""

import re
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image

import kd_app.models.small
from kd_app.config import Decoding, InputSpec
from kd_app.config.compose import compose_config
from kd_app.data.chained import Chained
from kd_app.data.folder import Folder
from kd_app.data.normalize import normalize
from kd_app.data.preparation import prepare_image
from kd_app.deployment.artifact import open_artifact
from kd_app.deployment.cascade import ModelCascade
from kd_app.deployment.confidence import compute_log_probabilities
from kd_app.deployment.manifest import describe_decoding
from kd_app.deployment.own_files import mark_written
from kd_app.jobs.predict import predict
from kd_app.models.save import copy_labeled, save_model
from kd_app.reporting.card_usage import write_usage
from kd_app.reporting.results import Results
from tests.data.test_bit_depth import encode_png, encode_tiff
from tests.data.test_module import build_images
from tests.deployment.graphs import write_linear
from tests.reporting.run_folders import build_results

assert kd_app.models.small  # registers resnet8
CLASSES = ("a", "b")
SPLITS = ("train", "validation", "test")
BOUND = 48
"""Shorter side to which larger images are reduced; small, so that small files do."""


def draw(width: int, height: int, seed: int) -> Image.Image:
    """Noise with a color that changes from left to right and from top to bottom."""
    noise = np.random.default_rng(seed).integers(0, 80, (height, width, 3))
    ramp = np.linspace(0, 175, width)[None, :, None] * np.linspace(0, 1, height)[:, None, None]
    return Image.fromarray((noise + ramp * [1, 0.6, 0.2]).astype(np.uint8))


def save_photo(path: Path, orientation: int, width: int, height: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    draw(width, height, orientation).save(path, exif=exif, quality=95)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image files of all kinds in two class folders."""
    path = tmp_path_factory.mktemp("photos")
    for name in CLASSES:
        (path / name).mkdir()
    for orientation in range(1, 9):
        save_photo(path / "a" / f"exif{orientation}.jpg", orientation, 31, 23)
    save_photo(path / "a" / "phone.jpg", 6, 420, 310)
    save_photo(path / "a" / "strip.jpg", 8, 400, 50)
    color, alpha = draw(29, 37, 10), Image.radial_gradient("L").resize((29, 37))
    kinds: dict[str, Image.Image] = {
        "rgb.bmp": color,
        "gray.png": color.convert("L"),
        "bits.png": color.convert("1"),
        "palette.gif": color.quantize(7),
        "print.tif": color.convert("CMYK"),
        "clear.png": Image.merge("RGBA", (*color.split(), alpha)),
        "clear_gray.png": Image.merge("LA", (color.convert("L"), alpha)),
        "deep.png": Image.fromarray(np.arange(0, 64000, 64, dtype=np.uint16).reshape(25, 40)),
        "deep.tif": Image.fromarray(np.arange(0, 64000, 64, dtype=np.uint16).reshape(40, 25)),
        "twelve_bits.png": Image.fromarray(np.arange(0, 4000, 4, dtype=np.uint16).reshape(25, 40)),
        "float.tif": Image.fromarray(np.linspace(0, 1, 1200, dtype=np.float32).reshape(30, 40)),
        "large.png": draw(300, 200, 11),
    }
    for name, image in kinds.items():
        image.save(path / "b" / name)
    deep = np.asarray(color, dtype=np.uint16) << 4
    (path / "b" / "twelve_bit_color.png").write_bytes(encode_png(deep))
    (path / "b" / "deep_color.tif").write_bytes(encode_tiff(deep << 4))
    color.quantize(7).save(path / "b" / "clear_palette.png", transparency=bytes([0, 128, 255]))
    color.save(path / "b" / "clear_color.png", transparency=color.getpixel((3, 3)))
    return path


def read_pixels(
    folder: Path, stage: Path, input_spec: InputSpec, channels: Literal[1, 3]
) -> dict[str, NDArray[np.uint8]]:
    """The pixels of the evaluation of a run, by file."""
    data = build_images(partial(Folder, channels=channels, class_level=None), root=folder)
    data.list()
    scan = data.scan_job(BOUND)
    assert scan is not None
    scan.run(stage, lambda done, total: None)
    data.load(stage)
    batches = Chained([data.build_evaluation_loader(each, input_spec) for each in SPLITS])
    return {
        data.files[int(row)]: image.numpy()
        for batch in batches
        for row, image in zip(batch.index, batch.image, strict=True)
    }


@cache
def build_card_results() -> Results:
    results = build_results(
        config=compose_config("distill", ["student.name=resnet8", "loss=[cross_entropy]"])
    )
    results.models["student"].name = "resnet8"
    return results


def read_card_code(student: Path) -> str:
    results = build_card_results()
    match = re.search(r"```python\n(.*?)```", "\n".join(write_usage(student, results)), re.DOTALL)
    assert match is not None
    return match[1]


@pytest.mark.parametrize(
    ("model_channels", "decoded_channels"),
    [(3, 3), (1, 1), (1, 3), (3, 1)],
    ids=["color", "gray", "gray model of color images", "color model of gray images"],
)
def test_every_way_to_classify_a_file_has_the_logits_of_the_evaluation(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_channels: int,
    decoded_channels: Literal[1, 3],
) -> None:
    mean, std = ((0.5, 0.4, 0.3)[:model_channels], (0.2, 0.25, 0.3)[:model_channels])
    input_spec = InputSpec(model_channels, 24, 24, mean, std, crop=0.875, interpolation="bicubic")
    (tmp_path / "scan").mkdir()
    expected = read_pixels(folder, tmp_path / "scan", input_spec, decoded_channels)
    names = sorted(expected)
    assert len(names) == 26
    decoding = Decoding(decoded_channels, BOUND)

    file = write_linear(tmp_path, input_spec, CLASSES, decoding=decoding)
    mark_written(file)  # a file of others answers the same from a process of its own
    artifact = open_artifact(file)
    for name in names:
        with Image.open(folder / name) as image:
            np.testing.assert_array_equal(artifact.prepare_image(image), expected[name], name)
    logits = artifact.infer_logits(np.stack([expected[name] for name in names]))
    cascade = ModelCascade([artifact, artifact], (0.6,), "maximum", (1.0, 1.0), decoding)
    cascade.save(tmp_path / "cascade.json", [file, file])
    labeled = label(file, folder, names)
    assert labeled == pytest.approx(compute_probabilities(logits), abs=1e-6)
    assert label(tmp_path / "cascade.json", folder, names) == labeled

    torch.manual_seed(0)
    model = timm.create_model("resnet8", num_classes=2, in_chans=model_channels).eval()
    save_model(model, tmp_path / "stage", pixels=input_spec, classes=CLASSES, license="mit")
    student, entry = tmp_path / "student", describe_decoding(decoding)
    copy_labeled(tmp_path / "stage", student, license="mit", teacher=None, decoding=entry)
    batch = torch.from_numpy(np.stack([expected[name] for name in names]))
    with torch.inference_mode():
        logits = model(normalize(batch, input_spec, torch.contiguous_format)).numpy()
    assert label(student, folder, names) == pytest.approx(compute_probabilities(logits), abs=1e-5)
    monkeypatch.chdir(tmp_path)
    code = compile(read_card_code(student), "card", "exec")
    variables: dict[str, Any] = {}
    for name in ("a/exif6.jpg", "a/phone.jpg", "b/clear.png", "b/deep.png"):
        (tmp_path / "image.png").write_bytes((folder / name).read_bytes())
        exec(code, variables)
        row = logits[names.index(name)]
        np.testing.assert_allclose(variables["logits"][0].numpy(), row, atol=1e-4, err_msg=name)
    for name in names:
        with Image.open(folder / name) as image:
            pixels = variables["prepare_image"](image, input_spec, decoding)
        np.testing.assert_array_equal(pixels, expected[name], name)


def label(model: Path, folder: Path, names: list[str]) -> list[float]:
    """The probability of the first class that kd-predict writes, by file."""
    out = model.parent / f"{model.name}.csv"
    settings = [f"model={model}", f"images={folder}", f"out={out}", "top=2", "overwrite=true"]
    predict(compose_config("predict", settings))
    table = pd.read_csv(out)
    assert list(table["file"]) == names
    is_first = table["label"] == CLASSES[0]
    return list(table["probability"].where(is_first, table["probability_2"]))


def compute_probabilities(logits: NDArray[np.float32]) -> list[float]:
    return list(np.exp(compute_log_probabilities(logits, 1.0))[:, 0])


def test_an_image_is_prepared_again_and_again_and_keeps_its_size(folder: Path) -> None:
    photo = Image.open(folder / "a" / "phone.jpg")
    input_spec = InputSpec(1, 24, 24, (0.5,), (0.5,))
    first, second = (prepare_image(photo, input_spec, Decoding(1, BOUND)) for _ in range(2))
    assert (first == second).all()
    assert (photo.mode, photo.size) == ("RGB", (420, 310))
    with Image.open(folder / "a" / "phone.jpg") as original:
        assert (np.asarray(photo) == np.asarray(original)).all()
    with (folder / "a" / "phone.jpg").open("rb") as file:
        assert (prepare_image(Image.open(file), input_spec, Decoding(1, BOUND)) == first).all()
        assert not file.closed
