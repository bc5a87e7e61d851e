"""Fashion-MNIST from its four idx files."""

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
    """28x28 gray photographs of clothes, ten classes; the 10,000 official test images
    are marked 'test', the 60,000 others are not assigned.

    `root`: the folder with the four idx files, plain or .gz; None looks where Debian's
    package ``dataset-fashion-mnist`` puts them. H. Xiao, K. Rasul, R. Vollgraf,
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
        """Read and check the four files. Raises `RequestError` where one is missing,
        truncated or something else.
        """
        train_images, train_labels, test_images, test_labels = self._find()
        parts = [
            (_read_images(train_images), _read_labels(train_labels, len(self.classes))),
            (_read_images(test_images), _read_labels(test_labels, len(self.classes))),
        ]
        for (images, labels), path in zip(parts, (train_images, test_images), strict=True):
            if len(images) != len(labels):
                raise RequestError(
                    f"{str(path)!r} holds {len(images)} images and the file beside it {len(labels)}"
                    f" labels. {_explain_download()}"
                )
        pixels, target = (np.concatenate(pair) for pair in zip(*parts, strict=True))
        return (
            pixels,
            target.astype(np.int64),
            ("",) * len(parts[0][1]) + ("test",) * len(parts[1][1]),
        )

    def _find(self) -> list[Path]:
        folders = (
            _default_folders()
            if self.root is None
            else [self.root, self.root / "FashionMNIST" / "raw"]
        )
        for folder in folders:
            found = [
                path
                for name in _FILES
                for path in (folder / name, folder / f"{name}.gz")
                if path.is_file()
            ]
            if {path.name.removesuffix(".gz") for path in found} == set(_FILES):
                return [
                    next(path for path in found if path.name.startswith(name)) for name in _FILES
                ]
        looked = ", ".join(str(folder) for folder in folders)
        raise RequestError(
            f"The four files of Fashion-MNIST are not all there. Looked in: {looked}."
            f" {_explain_download()}"
        )


def _explain_download() -> str:
    return (
        "To get them: `apt-get install dataset-fashion-mnist` (Debian, Ubuntu), or put "
        + ", ".join(f"{name}.gz" for name in _FILES)
        + " (github.com/zalandoresearch/fashion-mnist) into a folder and pass data.root=<that"
        " folder>."
    )


def _default_folders() -> list[Path]:
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
    found = _read_idx(path, dimensions=3)
    if found.shape[1:] != (_SIDE, _SIDE):
        raise RequestError(
            f"{str(path)!r} holds images of {found.shape[1]}x{found.shape[2]} pixels;"
            f" Fashion-MNIST's are {_SIDE}x{_SIDE}. {_explain_download()}"
        )
    return found


def _read_labels(path: Path, classes: int) -> np.ndarray:
    found = _read_idx(path, dimensions=1)
    if found.size and found.max() >= classes:
        raise RequestError(
            f"{str(path)!r} holds the label {found.max()}; Fashion-MNIST's are 0 to {classes - 1}."
            f" {_explain_download()}"
        )
    return found


def _read_idx(path: Path, *, dimensions: int) -> np.ndarray:
    """The bytes of an idx file: magic 0, 0, 8 (unsigned byte), number of dimensions;
    sizes as big-endian int32; data.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise RequestError(
            f"{str(path)!r} can't be read, it is truncated or damaged: {error}. {_explain_download()}"
        ) from error
    start = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))
    if data[:4] != magic or len(data) < start:
        raise RequestError(
            f"{str(path)!r} is no idx file of {dimensions} dimension(s): it begins with"
            f" {data[:4].hex()}, not {magic.hex()}. {_explain_download()}"
        )
    shape = tuple(
        int(side) for side in np.frombuffer(data, dtype=">u4", count=dimensions, offset=4)
    )
    expected = start + math.prod(shape)
    if len(data) != expected:
        raise RequestError(
            f"{str(path)!r} holds {len(data)} bytes; its header {shape} announces {expected}."
            f" {_explain_download()}"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
