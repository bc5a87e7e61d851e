"""Tests of reading and validating the files of Fashion-MNIST."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from kd_app.config import RequestError
from kd_app.data.fashion_mnist import FashionMNIST

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx(values: np.ndarray) -> bytes:
    return (
        bytes((0, 0, 8, values.ndim))
        + struct.pack(f">{values.ndim}I", *values.shape)
        + values.tobytes()
    )


def write(folder: Path, *, packed: bool, train: int = 20, test: int = 10) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    content = {}
    for name, count in zip(NAMES, (train, train, test, test), strict=True):
        shape, top = ((count, 28, 28), 256) if "images" in name else ((count,), 10)
        content[name] = random.integers(0, top, shape).astype(np.uint8)
        data = idx(content[name])
        (folder / (f"{name}.gz" if packed else name)).write_bytes(
            gzip.compress(data) if packed else data
        )
    return content


@pytest.mark.parametrize("packed", [True, False])
def test_pixels_labels_and_the_official_test_set_are_those_of_the_files(
    tmp_path: Path, packed: bool
) -> None:
    content = write(tmp_path, packed=packed)
    source = FashionMNIST(root=tmp_path)
    listing = source.list_images()
    assert (
        source.store()[:, 0].numpy() == np.concatenate([content[NAMES[0]], content[NAMES[2]]])
    ).all()
    assert (listing.target == np.concatenate([content[NAMES[1]], content[NAMES[3]]])).all()
    assert listing.split == ("",) * 20 + ("test",) * 10
    assert listing.classes[0] == "T-shirt/top"
    assert len(listing.classes) == 10
    assert (np.asarray(source.read(25)) == content[NAMES[2]][5]).all()
    assert (source.channels, source.size) == (1, 28)


def test_the_fingerprint_is_that_of_the_content_packed_or_not(tmp_path: Path) -> None:
    write(tmp_path / "packed", packed=True)
    write(tmp_path / "plain", packed=False)
    write(tmp_path / "other", packed=False)
    path = tmp_path / "other" / NAMES[0]
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    packed, plain, other = (
        FashionMNIST(root=tmp_path / name).list_images().fingerprint
        for name in ("packed", "plain", "other")
    )
    assert packed == plain != other


def test_torchvisions_folder_is_found_below_the_root(tmp_path: Path) -> None:
    write(tmp_path / "FashionMNIST" / "raw", packed=False)
    assert len(FashionMNIST(root=tmp_path).list_images().files) == 30


def test_the_folder_of_debians_package_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "datasets" / "fashion-mnist", packed=True)
    monkeypatch.setenv("XDG_DATA_DIRS", f"/nowhere:{tmp_path}")
    assert len(FashionMNIST(root=None).list_images().files) == 30


def test_the_message_for_missing_files_explains_the_download(tmp_path: Path) -> None:
    write(tmp_path, packed=True)
    (tmp_path / f"{NAMES[3]}.gz").unlink()
    with pytest.raises(RequestError) as raised:
        FashionMNIST(root=tmp_path).list_images()
    for message in ("dataset-fashion-mnist", "data.root=", str(tmp_path), *NAMES):
        assert message in str(raised.value)


def images(count: int = 20, side: int = 28) -> bytes:
    return idx(np.zeros((count, side, side), dtype=np.uint8))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (NAMES[0], images()[:-1], "bytes. Expected"),
        (NAMES[0], images() + b"\0", "bytes. Expected"),
        (NAMES[0], b"", "no idx file"),
        (NAMES[0], images()[:10], "no idx file"),
        (NAMES[0], b"<html>" + images(), "no idx file"),
        (NAMES[0], idx(np.zeros(20, dtype=np.uint8)), "no idx file"),
        (
            NAMES[0],
            bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1),
            "bytes. Expected",
        ),
        (NAMES[0], images(side=27), "27x27"),
        (NAMES[0], images(19), "19 images"),
        (NAMES[1], idx(np.full(20, 10, dtype=np.uint8)), "label 10"),
    ],
)
def test_an_invalid_file_is_refused_by_name(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    write(tmp_path, packed=False)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RequestError, match=message) as raised:
        FashionMNIST(root=tmp_path).list_images()
    assert name in str(raised.value)


@pytest.mark.parametrize("damage", ["cut", "flip", "text"])
def test_a_damaged_gz_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    write(tmp_path, packed=True)
    path = tmp_path / f"{NAMES[0]}.gz"
    data = path.read_bytes()
    path.write_bytes(
        {
            "cut": data[:-100],
            "flip": data[:500] + bytes([data[500] ^ 255]) + data[501:],
            "text": b"not gz",
        }[damage]
    )
    with pytest.raises(RequestError, match=f"{NAMES[0]}.*truncated or damaged"):
        FashionMNIST(root=tmp_path).list_images()
