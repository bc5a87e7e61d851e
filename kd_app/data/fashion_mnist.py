"""Fashion-MNIST, read from its four idx files."""

import gzip
import math
import os
import sys
import zlib
from pathlib import Path

import numpy as np

from kd_app.config import RequestError
from kd_app.data.arrays import Arrays, ArraySource

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_SIDE = 28


class FashionMNIST(ArraySource):
    """28x28 gray images of clothes, ten classes.

    The 10,000 official test images have the split 'test', the 60,000 others none.
    `root`: folder of the four idx files, plain or .gz; None: the folder of Debian's
    package ``dataset-fashion-mnist``. H. Xiao, K. Rasul, R. Vollgraf,
    Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms,
    2017, arXiv:1708.07747.
    """

    size = _SIDE
    name = "fashion_mnist"
    license = "mit"  # https://github.com/zalandoresearch/fashion-mnist/blob/master/LICENSE
    classes = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )

    def __init__(self, *, root: Path | None) -> None:
        self.root = None if root is None else root.expanduser()

    def load(self) -> Arrays:
        """Read the four files. Raises `RequestError` for a missing or invalid file."""
        train_images, train_labels, test_images, test_labels = self._find_files()
        parts = [
            (_read_images(train_images), _read_labels(train_labels, len(self.classes))),
            (_read_images(test_images), _read_labels(test_labels, len(self.classes))),
        ]
        for (images, labels), path in zip(parts, (train_images, test_images), strict=True):
            if len(images) != len(labels):
                raise RequestError(
                    f"{str(path)!r} holds {len(images)} images, but its labels file holds"
                    f" {len(labels)} labels. {_explain_download()}"
                )
        pixels, target = (np.concatenate(pair) for pair in zip(*parts, strict=True))
        return (
            pixels,
            target.astype(np.int64),
            ("",) * len(parts[0][1]) + ("test",) * len(parts[1][1]),
        )

    def _find_files(self) -> list[Path]:
        folders = (
            _list_default_folders()
            if self.root is None
            else [self.root, self.root / "FashionMNIST" / "raw"]
        )
        for folder in folders:
            paths = [
                path
                for name in _FILES
                for path in (folder / name, folder / f"{name}.gz")
                if path.is_file()
            ]
            if {path.name.removesuffix(".gz") for path in paths} == set(_FILES):
                return [
                    next(path for path in paths if path.name.startswith(name)) for name in _FILES
                ]
        searched = ", ".join(str(folder) for folder in folders)
        raise RequestError(
            f"The four files of Fashion-MNIST are not all there. Searched: {searched}."
            f" {_explain_download()}"
        )


def _explain_download() -> str:
    return (
        "To install them: `apt-get install dataset-fashion-mnist` (Debian, Ubuntu), or put "
        + ", ".join(f"{name}.gz" for name in _FILES)
        + " (github.com/zalandoresearch/fashion-mnist) into a folder and pass data.root=<that"
        " folder>."
    )


def _list_default_folders() -> list[Path]:
    shares = [
        *os.environ.get("XDG_DATA_DIRS", "").split(os.pathsep),
        str(Path(sys.prefix) / "share"),
        "/usr/local/share",
        "/usr/share",
    ]
    return [
        Path(share) / "datasets" / "fashion-mnist"
        for share in dict.fromkeys(share for share in shares if share)
    ]


def _read_images(path: Path) -> np.ndarray:
    images = _read_idx(path, dimensions=3)
    if images.shape[1:] != (_SIDE, _SIDE):
        raise RequestError(
            f"{str(path)!r} holds images of {images.shape[1]}x{images.shape[2]} pixels. Expected:"
            f" {_SIDE}x{_SIDE}. {_explain_download()}"
        )
    return images


def _read_labels(path: Path, classes: int) -> np.ndarray:
    labels = _read_idx(path, dimensions=1)
    if labels.size and labels.max() >= classes:
        raise RequestError(
            f"{str(path)!r} holds the label {labels.max()}. Expected: 0 to {classes - 1}."
            f" {_explain_download()}"
        )
    return labels


def _read_idx(path: Path, *, dimensions: int) -> np.ndarray:
    """Read an idx file of bytes.

    Format: the bytes 0, 0, 8 (unsigned byte), number of dimensions; then the sizes as
    big-endian int32; then the data.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise RequestError(
            f"{str(path)!r} can't be read, it is truncated or damaged: {error}."
            f" {_explain_download()}"
        ) from error
    start = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))
    if data[:4] != magic or len(data) < start:
        raise RequestError(
            f"{str(path)!r} is no idx file of {dimensions} dimension(s): its first bytes are"
            f" {data[:4].hex()}, not {magic.hex()}. {_explain_download()}"
        )
    shape = tuple(
        int(side) for side in np.frombuffer(data, dtype=">u4", count=dimensions, offset=4)
    )
    expected = start + math.prod(shape)
    if len(data) != expected:
        raise RequestError(
            f"{str(path)!r} holds {len(data)} bytes. Expected: {expected}, for its shape {shape}."
            f" {_explain_download()}"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
