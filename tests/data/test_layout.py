"""Tests of the layout of folders: splits, classes, and what is asked about."""

from pathlib import Path

import pytest

from kd_app.config import RequestError
from kd_app.data.folder import Folder
from kd_app.data.layout import ClassLevel, Layout, find_layout
from tests.data.test_folder import write_images


def layout(root: Path, names: list[str], level: ClassLevel | None = None) -> Layout:
    return find_layout(write_images(root, names), level)


def classes(root: Path, names: list[str], level: ClassLevel | None = None) -> dict[str, list[str]]:
    return {split: list(part) for split, part in layout(root, names, level).parts.items()}


def expect_refusal(root: Path, names: list[str]) -> str:
    with pytest.raises(RequestError) as raised:
        layout(root, names)
    return str(raised.value)


def fill(*folders: str, inner: tuple[str, ...] = ("cat", "dog")) -> list[str]:
    return [f"{folder}/{name}/1.png" for folder in folders for name in inner]


@pytest.mark.parametrize(
    "folders",
    [
        ("training_set", "test_set"),
        ("seg_train", "seg_test"),
        ("train_images", "val_images"),
        ("TrainImages", "TestImages"),
        ("imgs train", "imgs-val", "ImgsTest"),
        ("ILSVRC_train", "ILSVRC_val"),
        ("my train", "test of mine"),
    ],
)
def test_folders_that_all_have_a_split_word_are_splits(
    tmp_path: Path, folders: tuple[str, ...]
) -> None:
    result = layout(tmp_path, fill(*folders))
    assert next(iter(result.parts)) == "train"
    assert len(result.parts) == len(folders)
    assert all(list(part) == ["cat", "dog"] for part in result.parts.values())
    assert "read as predefined splits" in result.notes[0]


@pytest.mark.parametrize(
    "names",
    [
        ["freight_train/1.png", "crash_test/1.png"],
        ["freight_train/1.png", "passenger_train/1.png"],
        ["train_station/2019/1.png", "test_tube/small/1.png"],
        ["bus/1.png", "train/1.png", "car/1.png"],
        ["test_positive/1.png", "test_negative/1.png"],
        ["valid/1.png", "invalid/1.png"],
        ["valid_docs/1.png", "invalid_docs/1.png"],
    ],
)
def test_split_words_in_names_of_classes_are_no_splits(tmp_path: Path, names: list[str]) -> None:
    assert list(classes(tmp_path, names)) == [""]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train_images/1.png", "test_images/1.png"], "1 image(s) and no class folder"),
        (["train/1.png", "test/1.png", "extra/1.png"], "predefined splits or classes?"),
        ([*fill("training_set", "test_set"), "extra/1.png"], "predefined splits or classes?"),
        (["images/1.png", "annotations/trimaps/1.png"], "images and their annotations. Labels in"),
        (fill("train", "val", inner=("images", "labels")), "images and their annotations"),
        (fill("train_a", "train_b", "test"), "'train_a', 'train_b' are two folders for the same"),
        (fill("train", "test", "svhn_extra"), "rename it to val or test, or merge it into train"),
        ([*fill("train", "test"), "extra/1.png"], "rename it to unlabeled; data.unlabeled="),
        (fill("seg_val", "seg_test"), "all hold sub-folders of the same names"),
        (fill("site1", "site2", "site3"), "all hold sub-folders of the same names ('cat', 'dog')"),
        (fill("train/a", "train/b", "test/a", "test/b"), "data.source.class_level=2"),
        (
            [*fill("one", inner=("a", "b", "c", "d")), *fill("two", inner=("a", "b"))],
            "data.source.class_level=1",
        ),
    ],
)
def test_a_doubtful_layout_is_asked_about(tmp_path: Path, names: list[str], message: str) -> None:
    assert message in expect_refusal(tmp_path, names)


def test_the_level_of_the_classes_can_be_set(tmp_path: Path) -> None:
    names = [*fill("site1"), *fill("site2", inner=("cat", "eel"))]
    assert classes(tmp_path, names, level=1) == {"": ["site1", "site2"]}
    assert classes(tmp_path, [], level=2) == {"": ["cat", "dog", "eel"]}
    source = Folder(root=tmp_path, channels=1, class_level=2)
    listing = source.list_images()
    assert listing.files == (
        "site1/cat/1.png",
        "site1/dog/1.png",
        "site2/cat/1.png",
        "site2/eel/1.png",
    )
    assert [listing.classes[number] for number in listing.target] == ["cat", "dog", "cat", "eel"]


def test_folders_of_classes_are_classes_with_a_note(tmp_path: Path) -> None:
    names = [*fill("animals"), *fill("plants", inner=("oak", "rose"))]
    result = layout(tmp_path, names)
    assert list(result.parts[""]) == ["animals", "plants"]
    assert "their 4 sub-folders ('cat', 'dog', 'oak', 'rose') are parts of them" in result.notes[0]


@pytest.mark.parametrize(
    "names",
    [
        ["cat/images/1.png", "dog/images/1.png"],
        ["cat/2020/may/1.png", "cat/1.png", "dog/2021/1.png"],
    ],
)
def test_usual_sub_folders_of_classes_need_no_note(tmp_path: Path, names: list[str]) -> None:
    assert layout(tmp_path, names) == Layout(
        tmp_path, {"": {"cat": [tmp_path / "cat"], "dog": [tmp_path / "dog"]}}, ()
    )


@pytest.mark.parametrize(
    "outer",
    ["archive/archive", "archive", "photos/photos", "a/a/a"],
)
def test_a_folder_that_only_holds_the_data_is_entered_with_a_note(
    tmp_path: Path, outer: str
) -> None:
    result = layout(tmp_path, fill(f"{outer}/train", f"{outer}/test"))
    assert result.base == tmp_path / outer
    assert list(result.parts) == ["train", "test"]
    assert f"are read from '{tmp_path / outer}'" in result.notes[0]


def test_a_doubled_folder_of_classes_is_entered(tmp_path: Path) -> None:
    result = layout(tmp_path / "photos", fill("photos"))
    assert list(result.parts[""]) == ["cat", "dog"]
    assert result.base == tmp_path / "photos" / "photos"
    assert layout(tmp_path / "x", fill("photos/photos")).base == tmp_path / "x/photos/photos"


def test_doubled_folders_of_splits_are_entered(tmp_path: Path) -> None:
    names = [*fill("seg_train/seg_train", "seg_test/seg_test"), "notes/readme.txt"]
    result = layout(tmp_path, names)
    assert {split: list(part) for split, part in result.parts.items()} == {
        "train": ["cat", "dog"],
        "test": ["cat", "dog"],
    }
    assert result.parts["train"]["cat"] == [tmp_path / "seg_train/seg_train/cat"]
    assert any("'notes' beside the splits: left out" in note for note in result.notes)


def test_a_folder_of_images_in_each_split_is_entered(tmp_path: Path) -> None:
    result = layout(tmp_path, fill("train/images", "val/images"))
    assert result.parts["validation"]["dog"] == [tmp_path / "val/images/dog"]
    assert result.base == tmp_path
    assert "/train/images" in result.notes[0]


def test_a_copy_of_the_splits_beside_them_is_left_out(tmp_path: Path) -> None:
    result = layout(tmp_path, fill("train", "test", "x/train", "x/test"))
    assert list(result.parts) == ["train", "test"]
    assert "'x' beside the splits: left out" in result.notes[0]


def test_splits_in_each_class_are_splits(tmp_path: Path) -> None:
    result = layout(tmp_path, fill("cat", "dog", inner=("train", "test")))
    assert {split: list(part) for split, part in result.parts.items()} == {
        "train": ["cat", "dog"],
        "test": ["cat", "dog"],
    }
    assert result.parts["test"]["dog"] == [tmp_path / "dog/test"]
    assert "each class has folders of splits: 'train', 'test'" in result.notes[0]


def test_splits_with_the_classes_below_them_are_asked_about(tmp_path: Path) -> None:
    message = expect_refusal(
        tmp_path, fill("images/train", "images/val", "masks/train", "masks/val")
    )
    assert "splits with the same sub-folders ('cat', 'dog')" in message
    assert f"data.root={tmp_path / 'images'}" in message


def test_parts_of_a_class_below_its_splits_are_read(tmp_path: Path) -> None:
    names = ["cat/train/monday/1.png", "cat/test/1.png", "dog/train/1.png", "dog/test/sunday/1.png"]
    assert classes(tmp_path, names) == {"train": ["cat", "dog"], "test": ["cat", "dog"]}


def test_splits_beside_the_root_are_noted(tmp_path: Path) -> None:
    write_images(tmp_path, fill("train", "test"))
    (note,) = find_layout(tmp_path / "train", None).notes
    assert "not read: 'test'" in note
    assert f"data.root={tmp_path} reads them" in note


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "eval"), {"train": "train", "test": "eval"}),
        (("training", "evaluation"), {"train": "training", "test": "evaluation"}),
        (("train", "val", "eval"), {"train": "train", "validation": "val", "test": "eval"}),
        (("train", "eval", "test"), {"train": "train", "validation": "eval", "test": "test"}),
        (("train", "dev", "holdout"), {"train": "train", "validation": "dev", "test": "holdout"}),
        (("train", "hold-out"), {"train": "train", "test": "hold-out"}),
        (("trainval", "test"), {"train": "trainval", "test": "test"}),
    ],
)
def test_other_names_of_splits_are_read_by_what_is_beside_them(
    tmp_path: Path, folders: tuple[str, ...], splits: dict[str, str]
) -> None:
    parts = layout(tmp_path, fill(*folders)).parts
    assert {split: part["cat"][0].parent.name for split, part in parts.items()} == splits


def test_a_folder_that_may_be_either_split_is_noted(tmp_path: Path) -> None:
    assert "('train' is train, 'eval' is test)" in layout(tmp_path, fill("train", "eval")).notes[0]


@pytest.mark.parametrize(
    "name", ["unlabeled", "Unlabelled", "unsup", "train_unlabeled", "no_label"]
)
def test_images_without_labels_beside_splits_are_left_out_with_the_way_to_use_them(
    tmp_path: Path, name: str
) -> None:
    listing = layout(tmp_path, [*fill("train", "test"), f"{name}/1.png"])
    assert list(listing.parts) == ["train", "test"]
    assert listing.notes == (
        f"In {str(tmp_path)!r}, {name!r} beside the splits has images without labels, which are"
        f" only used with data.unlabeled={tmp_path / name}.",
    )


def test_images_without_labels_beside_classes_are_noted(tmp_path: Path) -> None:
    write_images(tmp_path, ["cat/1.png", "dog/1.png", "unlabeled/1.png"])
    (note,) = Folder(root=tmp_path, channels=1, class_level=None).list_images().notes
    assert "'unlabeled' is read as a class" in note


def test_folders_named_like_annotations_are_classes_if_the_level_says_so(tmp_path: Path) -> None:
    names = ["images/1.png", "masks/1.png"]
    assert classes(tmp_path, names, level=1) == {"": ["images", "masks"]}
    with pytest.raises(RequestError, match=r"single class, 'images'.* Labels in other files"):
        Folder(
            root=write_images(tmp_path / "yolo", ["images/1.png"]), channels=1, class_level=None
        ).list_images()


def test_names_with_split_and_class_are_splits(tmp_path: Path) -> None:
    names = ["train_Cat1", "train_Cat2", "test_Cat1", "test_Cat2", "Cat1 val", "Cat2 val"]
    result = layout(tmp_path, [f"{name}/1.png" for name in names])
    assert list(result.parts) == ["train", "validation", "test"]
    assert all(sorted(part) == ["Cat1", "Cat2"] for part in result.parts.values())
    assert "'test_Cat1' is 'Cat1' in test" in result.notes[0]
    assert list(find_layout(tmp_path, 1).parts) == [""]


@pytest.mark.parametrize(
    "names",
    [
        ["train_cat", "train_dog", "test_cat"],
        ["train_cat", "train_dog", "test_cat", "test_dog", "eel"],
        ["freight_train", "passenger_train", "crash_test", "blood_test"],
        ["train_cat", "train_dog"],
    ],
)
def test_names_with_splits_of_some_classes_are_classes(tmp_path: Path, names: list[str]) -> None:
    assert list(layout(tmp_path, [f"{name}/1.png" for name in names]).parts) == [""]
