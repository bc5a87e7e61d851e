"""Small runs that are made again and again: a teacher that is there already, data that take no time, and where a run left what."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

import kd_app.models.small  # noqa: F401  (registers the small nets with timm)
from kd_app.config import Pixels
from kd_app.models.ship import save_model
from kd_app.stages import file_sha256

DIGITS = tuple("0123456789")
GRAY = Pixels(1, 8, 8, (0.3,), (0.4,))


def teacher_folder(folder: Path, name: str = "resnet8", *, pixels: Pixels = GRAY, classes: tuple[str, ...] = DIGITS, **kwargs: Any) -> Path:
    """A teacher for these classes with weights that nobody trained, in timm's local-dir layout; used as it is."""
    with torch.random.fork_rng():
        torch.manual_seed(77)
        model = timm.create_model(name, num_classes=len(classes), in_chans=pixels.channels, **kwargs)
    save_model(model, folder, pixels=pixels, classes=classes, license="none")
    return folder


def image_folder(folder: Path, *, images: int, classes: int = 2, side: int = 16) -> Path:
    """`images` PNGs a class of color noise, brighter from class to class."""
    random = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(images):
            pixels = random.integers(0, 128 + 120 * label // max(classes - 1, 1), (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{number:03d}.png")
    return folder


def student_sha256(out: Path) -> str:
    """sha256 of the student that ships."""
    return file_sha256(out / "student" / "model.safetensors")


def results(out: Path) -> dict[str, Any]:
    """Content of ``results.json``."""
    found: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return found


def stage(out: Path, name: str) -> Path:
    """Folder of a run's stage."""
    return next(Path(each["path"]) for each in results(out)["stages"] if each["name"] == name)
