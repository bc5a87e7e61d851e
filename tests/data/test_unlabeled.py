"""Tests of a folder of unlabeled images in addition to the labeled ones."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_app.config import InputSpec, RequestError
from kd_app.data.folder import Folder
from kd_app.data.module import ImageData
from kd_app.data.views import ResizedCrop
from tests.builders import image_folder
from tests.data.test_module import build_images

COLOR = InputSpec(3, 16, 16, (0.5,) * 3, (0.5,) * 3)
VIEW = ResizedCrop(scale=(0.3, 1.0), ratio=(0.7, 1.4), flip=True, jitter=0.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images of two classes in ``labeled``, and unlabeled ones in ``more``."""
    place = tmp_path_factory.mktemp("photos")
    image_folder(place / "labeled", images=20)
    image_folder(place / "more", images=4, seed=1)
    (place / "more" / "class0" / "000.png").rename(place / "more" / "top.png")
    (place / "more" / "notes.txt").write_text("not an image")
    return place


def serve(photos: Path, folder: Path, **changed: object) -> ImageData:
    settings = {"root": photos / "labeled", "view": VIEW, "unlabeled": photos / "more", **changed}
    data = build_images(partial(Folder, channels=3, class_level=None), **settings)
    data.list()
    if not (folder / "scan.json").exists():
        scan = data.scan_job(32)
        assert scan is not None
        scan.run(folder, lambda done, total: None)
    data.load(folder)
    data.bind(COLOR, order_seed=0)
    return data


def test_unlabeled_images_are_used_for_training_only(photos: Path, tmp_path: Path) -> None:
    data = serve(photos, tmp_path)
    assert data.sizes == {"train": 28, "validation": 4, "test": 8, "unlabeled": 8}
    names = [data.files[number] for number in data.list_rows("unlabeled")]
    assert names[-1] == "unlabeled/top.png"
    assert names[0] == "unlabeled/class0/001.png"
    batches = list(data.train_dataloader())
    assert len(batches) == 36 // 8
    for batch in batches:
        assert batch.labeled is not None
        assert torch.equal(batch.labeled, batch.index < 40)
        assert torch.equal(batch.target >= 0, batch.labeled)
    assert any(not bool(batch.labeled.all()) for batch in batches if batch.labeled is not None)
    for split in ("train", "validation", "test"):
        assert all(
            bool((batch.target >= 0).all()) for batch in data.build_evaluation_loader(split, COLOR)
        )


def test_labeled_images_take_as_many_steps_as_all_images(photos: Path, tmp_path: Path) -> None:
    data = serve(photos, tmp_path, label_fraction=0.5)
    data.bind(COLOR, order_seed=0, labeled_only=True)
    batches = list(data.train_dataloader())
    assert len(batches) == 36 // 8
    assert len(data.index.labeled_rows) == 14
    assert set(torch.cat([batch.index for batch in batches]).tolist()) <= set(
        data.index.labeled_rows.tolist()
    )
    left_out, *notes = data.notes
    assert "more', 1 file (1 .txt) is left out" in left_out
    assert [note.partition(" (")[0] for note in notes] == [
        "14 of 28 training images keep their label",
        "8 images without labels",
    ]


def test_unlabeled_images_change_the_fingerprint_but_not_the_splits(
    photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "without").mkdir()
    data, without = serve(photos, tmp_path), serve(photos, tmp_path / "without", unlabeled=None)
    for split in ("train", "validation", "test"):
        assert np.array_equal(data.list_rows(split), without.list_rows(split))
    assert data.compute_pixel_statistics() == without.compute_pixel_statistics()
    assert data.fingerprint != without.fingerprint
    data.write_split(tmp_path / "split.csv")
    rows = (tmp_path / "split.csv").read_text(encoding="utf-8").splitlines()
    assert rows[-1] == f"47,unlabeled/top.png,,unlabeled,,{data.listing.digests[-1][:16].hex()}"


def test_images_and_names_change_the_fingerprint(photos: Path, tmp_path: Path) -> None:
    def fingerprint(folder: Path) -> str:
        data = build_images(
            partial(Folder, channels=3, class_level=None),
            root=photos / "labeled",
            view=VIEW,
            unlabeled=folder,
        )
        data.list()
        return data.index.listing.fingerprint

    image = (photos / "more" / "top.png").read_bytes()
    for name, files in {
        "a": {"x.png": image},
        "b": {"x.png": image},
        "c": {"y.png": image},
        "d": {"x.png": image + b"0"},
    }.items():
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file).write_bytes(content)
    fingerprints = [fingerprint(tmp_path / name) for name in "abcd"]
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 3


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("nowhere", "Set data.unlabeled to that folder"),
        ("empty", "holds no image"),
        ("labeled/class0", "holds images of data.root"),
    ],
)
def test_an_unusable_folder_is_refused(
    photos: Path, tmp_path: Path, folder: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    place = tmp_path / folder if folder == "empty" else photos / folder
    with pytest.raises(RequestError, match=message):
        build_images(
            partial(Folder, channels=3, class_level=None),
            root=photos / "labeled",
            view=VIEW,
            unlabeled=place,
        ).list()
