"""Folders without classes, and tables of labels that only judge."""

from pathlib import Path

import pytest
from PIL import Image

from kd_app.config import RequestError
from kd_app.data.source import Listing
from kd_app.data.splits import split
from kd_app.data.unlabeled_folder import UnlabeledFolder

NAMES = [f"{number:02d}.png" for number in range(8)] + ["deep/er/08.png", "deep/09.png"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for shade, name in enumerate(NAMES):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3), 20 * shade).save(path)
    (tmp_path / "photos" / "notes.txt").touch()
    return tmp_path / "photos"


def _list(root: Path, judge: Path | None = None) -> Listing:
    return UnlabeledFolder(root=root, channels=3, judge=judge).list_images()


def _write_table(root: Path, *rows: str) -> Path:
    table = root.parent / "labels.csv"
    table.write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    return table


def _refuse(root: Path, judge: Path | None = None) -> str:
    with pytest.raises(RequestError) as raised:
        _list(root, judge)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_images_at_any_depth_have_no_class(root: Path) -> None:
    listing = _list(root)
    assert listing.files == tuple(sorted(NAMES))
    assert listing.classes == ()
    assert set(listing.target.tolist()) == {-1}
    assert "notes.txt" not in listing.files
    assert ".txt" in listing.notes[0]


def test_images_without_classes_are_divided(root: Path) -> None:
    names = split(_list(root), seed=0, validation=0.2, test=0.2).names
    assert {name: names.count(name) for name in set(names)} == {
        "train": 6,
        "validation": 2,
        "test": 2,
    }


def test_labels_judge_some_images_by_path_or_unique_name(root: Path) -> None:
    judge = _write_table(root, "00.png,rose", "deep/er/08.png,tulip", "09.png,rose")
    listing = _list(root, judge)
    labels = dict(zip(listing.files, listing.target.tolist(), strict=True))
    assert listing.classes == ("rose", "tulip")
    assert labels["00.png"] == labels["deep/09.png"] == 0
    assert labels["deep/er/08.png"] == 1
    assert sum(label == -1 for label in labels.values()) == 7


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["other.png,rose", "00.png,tulip"], "names 1 image.*'other.png'"),
        (["00.png,rose", "00.png,tulip"], "'00.png' two labels, 'rose' and 'tulip'"),
        (["00.png,rose", "01.png,rose"], "1 different label"),
    ],
)
def test_a_wrong_table_is_refused(root: Path, rows: list[str], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        _list(root, _write_table(root, *rows))


def test_a_missing_table_and_a_table_without_the_columns_are_refused(root: Path) -> None:
    assert "is no file" in _refuse(root, root / "none.csv")
    table = root.parent / "other.csv"
    table.write_text("file,kind\n00.png,rose\n", encoding="utf-8")
    assert "no column 'path'" in _refuse(root, table)


def test_one_image_is_refused(root: Path) -> None:
    for name in NAMES[1:]:
        (root / name).unlink()
    assert "holds 1 image(s)" in _refuse(root)


def test_a_file_is_no_folder(root: Path) -> None:
    assert "is a file" in _refuse(root / "00.png")
