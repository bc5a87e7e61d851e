"""Small copies of four image sets, for measurements that train many models."""

import gzip
import shutil
import struct
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from benchmarks.photos import PIXELS, load_efficientnet
from kd_app.config import RequestError
from kd_app.models.save import save_model

FASHION: Final = Path("/usr/share/datasets/fashion-mnist")
_LABEL_BYTES: Final = 8
_IMAGE_BYTES: Final = 16


class Size(NamedTuple):
    """The number of images of a copy, at most: train holds validation, too."""

    train: int
    test: int


def copy_fashion(folder: Path, size: Size, source: Path = FASHION) -> Path:
    """Write the first images of Fashion-MNIST as idx files, and return their folder."""
    target = folder / f"fashion_mnist-{size.train}-{size.test}"
    target.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", size.train), ("t10k", size.test)):
        for name, head, width in (
            (f"{part}-images-idx3-ubyte", _IMAGE_BYTES, 28 * 28),
            (f"{part}-labels-idx1-ubyte", _LABEL_BYTES, 1),
        ):
            content = gzip.decompress((source / f"{name}.gz").read_bytes())
            magic, total = struct.unpack(">II", content[:8])
            number = min(count, total)
            start = struct.pack(">II", magic, number) + content[8:head]
            (target / name).write_bytes(start + content[head : head + number * width])
    return target


def copy_folder(source: Path, target: Path, counts: dict[str, int]) -> Path:
    """Copy images of the class folders in `source`, evenly spaced in the order of their
    names, and return `target`.

    counts: the number of images by class, at most.
    """
    if target.is_dir():
        return target
    if not source.is_dir():
        raise RequestError(
            f"{str(source)!r} is no folder. Expected a folder with a folder of images for each"
            " class. Name it with --cifar10=... or --flowers=..."
        )
    partial = target.with_name(f"{target.name}.partial")
    for name, count in counts.items():
        files = sorted(path for path in (source / name).iterdir() if path.is_file())
        rows = np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)
        (partial / name).mkdir(parents=True, exist_ok=True)
        for row in rows:
            shutil.copyfile(files[row], partial / name / files[row].name)
    partial.rename(target)
    return target


def list_classes(source: Path) -> list[str]:
    """The names of the class folders in `source`."""
    return sorted(path.name for path in source.iterdir() if path.is_dir())


def copy_cifar(folder: Path, size: Size, source: Path) -> Path:
    """Copy as many images of each class of a folder with ``train/`` and ``test/``."""
    target = folder / f"cifar10-{size.train}-{size.test}"
    for part, count in (("train", size.train), ("test", size.test)):
        classes = list_classes(source / part)
        counts = dict.fromkeys(classes, count // len(classes))
        copy_folder(source / part, target / part, counts)
    return target


def copy_imbalanced(folder: Path, source: Path, *, largest: int, ratio: float, test: int) -> Path:
    """Copy a set with ``train/`` and ``test/`` so that the classes of train have fewer
    and fewer images, from `largest` to ``largest / ratio`` in equal ratios; test has
    `test` images of each class.
    """
    target = folder / f"imbalanced-{largest}-{ratio:g}-{test}"
    classes = list_classes(source / "train")
    counts = {
        name: round(largest * ratio ** (-number / (len(classes) - 1)))
        for number, name in enumerate(classes)
    }
    copy_folder(source / "train", target / "train", counts)
    copy_folder(source / "test", target / "test", dict.fromkeys(classes, test))
    return target


def copy_flowers(folder: Path, size: Size, source: Path) -> Path:
    """Copy as many photographs of each class of a folder without splits."""
    target = folder / f"flowers-{size.train}-{size.test}"
    classes = list_classes(source)
    return copy_folder(source, target, dict.fromkeys(classes, sum(size) // len(classes)))


def write_lite(folder: Path, number: int) -> Path:
    """Write the ImageNet weights of EfficientNet-Lite `number` as a model folder."""
    target = folder / f"lite{number}"
    if not (target / "config.json").is_file():
        model = load_efficientnet(number)
        classes = tuple(map(str, range(1000)))
        save_model(model, target, pixels=PIXELS, classes=classes, license="apache-2.0")
    return target
