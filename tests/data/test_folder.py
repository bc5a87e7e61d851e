"""Tests of folders of class folders: content, order and errors."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_app.config import RequestError
from kd_app.data.folder import Folder
from kd_app.data.images import BadImageError
from kd_app.data.source import Listing


def write_images(root: Path, names: Iterable[str]) -> Path:
    """Write a 4x3 image of another shade for each image name, else an empty file."""
    for shade, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg"):
            Image.new("L", (4, 3), shade).save(path, format="png")
        else:
            path.touch()
    return root


def list_images(root: Path) -> Listing:
    return Folder(root=root, channels=1, class_level=None).list_images()


def expect_refusal(root: Path) -> str:
    with pytest.raises(RequestError) as raised:
        Folder(root=root, channels=3, class_level=None).list_images()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_sub_folder_is_a_class_and_its_name_the_label(tmp_path: Path) -> None:
    source = Folder(
        root=write_images(tmp_path, ["cat/1.png", "cat/2.JPG", "dog/1.png"]),
        channels=1,
        class_level=None,
    )
    listing = source.list_images()
    assert listing.classes == ("cat", "dog")
    assert listing.files == ("cat/1.png", "cat/2.JPG", "dog/1.png")
    assert listing.target.tolist() == [0, 0, 1]
    assert listing.target.dtype == np.int64
    assert set(listing.split) == set(listing.group) == {""}
    assert [np.asarray(source.read(index)).max() for index in range(3)] == [0, 1, 2]
    assert source.store() is None


def test_images_have_the_configured_channels(tmp_path: Path) -> None:
    write_images(tmp_path, ["a/1.png", "b/1.png"])
    assert [
        Folder(root=tmp_path, channels=channels, class_level=None).read(0).mode
        for channels in (1, 3)
    ] == [
        "L",
        "RGB",
    ]
    with pytest.raises(RequestError, match="channels=2"):
        Folder(root=tmp_path, channels=2, class_level=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["val", "valid", "validation", "Val"])
def test_predefined_splits_are_recognized_by_folder_names(tmp_path: Path, word: str) -> None:
    listing = list_images(
        write_images(
            tmp_path,
            [f"{part}/{name}/1.png" for part in ("train", word, "test") for name in ("a", "b")],
        )
    )
    assert dict(zip(listing.files, listing.split, strict=True)) == {
        f"{part}/{name}/1.png": split
        for part, split in (("train", "train"), (word, "validation"), ("test", "test"))
        for name in ("a", "b")
    }
    assert listing.classes == ("a", "b")
    assert [listing.classes[number] for number in listing.target] == [
        file.split("/")[1] for file in listing.files
    ]


@pytest.mark.parametrize("parts", [("train",), ("train", "test"), ("train", "val")])
def test_validation_and_test_folders_are_optional(tmp_path: Path, parts: tuple[str, ...]) -> None:
    listing = list_images(
        write_images(tmp_path, [f"{part}/{name}/1.png" for part in parts for name in ("a", "b")])
    )
    assert len(set(listing.split)) == len(parts)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert list_images(
        write_images(tmp_path, ["bus/1.png", "car/1.png", "train/1.png"])
    ).classes == (
        "bus",
        "car",
        "train",
    )


def test_predefined_splits_next_to_other_folders_are_refused(tmp_path: Path) -> None:
    message = expect_refusal(
        write_images(
            tmp_path,
            ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png", "extras/1.png"],
        )
    )
    assert "'extras'" in message
    assert "predefined splits or classes?" in message


def test_order_does_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    names = ["b/10.png", "b/9.png", "a/Z.png", "a/a.png", "a/sub/1.png", "B/1.png", "ä/1.png"]
    write_images(tmp_path / "x", names)
    for name in reversed(names):
        (tmp_path / "y" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "x" / name, tmp_path / "y" / name)
    first, second = list_images(tmp_path / "x"), list_images(tmp_path / "y")
    assert first.files == second.files == tuple(sorted(names))
    assert first.classes == ("B", "a", "b", "ä")
    assert first.fingerprint == second.fingerprint


def test_nested_folders_belong_to_their_class(tmp_path: Path) -> None:
    listing = list_images(
        write_images(tmp_path, ["cat/2020/may/1.png", "cat/1.png", "dog/2021/1.png"])
    )
    assert [listing.classes[number] for number in listing.target] == ["cat", "cat", "dog"]


def test_hidden_names_and_leftovers_of_archives_are_left_out(tmp_path: Path) -> None:
    names = [
        "a/1.png",
        "b/1.png",
        "a/._1.png",
        "a/.cache/1.png",
        ".git/1.png",
        "__MACOSX/a/1.png",
        ".DS_Store",
        "a/.DS_Store",
    ]
    assert list_images(write_images(tmp_path, names)).files == ("a/1.png", "b/1.png")


def test_files_that_are_no_images_are_counted_by_ending(tmp_path: Path) -> None:
    names = ["a/notes.txt", "b/Thumbs.db", "b/sub/data.csv", "a/LICENSE", "a/x.TXT"]
    (note,) = list_images(write_images(tmp_path, ["a/1.png", "b/1.png", *names])).notes
    assert "4 files (2 .txt, 1 without an ending, 1 .csv) are left out" in note
    assert "HEIC" not in note


def test_runs_inside_of_the_data_are_left_out_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, ["a/1.png", "b/1.png", "b/2/3/4/5.png"])
    write_images(
        tmp_path, ["runs/.stages/x/1.png", "runs/one/1.png", "mine/config.yaml", "mine/.lock"]
    )
    write_images(tmp_path, ["more/one/config.yaml", "more/one/results.json", "more/one/report.png"])
    listing = list_images(tmp_path)
    assert listing.classes == ("a", "b")
    assert len(listing.files) == 3
    (note,) = listing.notes
    assert "runs of kd_app are left out: 'mine', 'more', 'runs'." in note
    monkeypatch.chdir(tmp_path)
    assert "'mine', 'more', 'runs'" in list_images(Path()).notes[0]
    write_images(tmp_path, ["c/config.yaml", "c/1.png"])
    assert list_images(tmp_path).classes == ("a", "b", "c")


def test_pipes_are_left_out_with_a_note(tmp_path: Path) -> None:
    write_images(tmp_path, ["a/1.png", "b/1.png"])
    os.mkfifo(tmp_path / "a" / "2.png")
    (note,) = list_images(tmp_path).notes
    assert "1 pipe(s), socket(s) or device(s) are left out, for example 'a/2.png'" in note


def test_heic_files_are_counted_with_a_way_to_read_them(tmp_path: Path) -> None:
    (note,) = list_images(
        write_images(tmp_path, ["a/1.png", "b/1.png", "b/2.HEIC", "b/3.heic"])
    ).notes
    assert "2 files (2 .heic)" in note
    assert "pip install 'kd_app[heic]'" in note
    assert "sips" in note
    message = expect_refusal(write_images(tmp_path / "only", ["a/1.png", "b/1.png", "c/1.HEIC"]))
    assert "'c' (1 file (1 .heic) of other kinds)" in message
    assert "kd_app[heic]" in message


def test_images_beside_the_class_folders_are_counted(tmp_path: Path) -> None:
    source = write_images(
        tmp_path, ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png"]
    )
    write_images(tmp_path, ["x.png", "train/y.png", "readme.md"])
    (note,) = list_images(source).notes
    assert (
        "2 image(s) beside the class folders have no class and are left out, for example 'x.png'"
        in note
    )


def test_system_names_are_left_out_with_a_note(tmp_path: Path) -> None:
    names = ["a/@eaDir/1.png", "b/@eaDir/1.png", "$RECYCLE.BIN/c/1.png", "a/._1.jpg", "b/.DS_Store"]
    listing = list_images(write_images(tmp_path, ["a/1.png", "b/1.png", *names]))
    assert listing.files == ("a/1.png", "b/1.png")
    (note,) = listing.notes
    assert "'@eaDir' (2 times), '.* (hidden images)', '$RECYCLE.BIN'" in note


@pytest.mark.parametrize(
    "name", ["1", "1.jpg_large", "1.jpg.1", "1.jpg?w=200", "1.heic", "a.b c", "1.tif_large"]
)
def test_images_with_a_strange_ending_are_recognized_by_content(tmp_path: Path, name: str) -> None:
    root = write_images(tmp_path, ["a/1.png", "b/2.png"])
    kind = "tiff" if ".tif" in name else "jpeg"
    Image.new("L", (4, 3), 7).save(root / "a" / name, format=kind)
    (root / "b" / name).write_bytes(b"BM is no bitmap here")
    listing = list_images(root)
    assert f"a/{name}" in listing.files
    assert f"b/{name}" not in listing.files
    assert np.asarray(Folder(root=root, channels=1, class_level=None).read(0)).shape == (3, 4)


@pytest.mark.parametrize("name", ["1.nef", "1.jpg.bak", "1.jpg~", "1.jpg_original", "1.jpg.part"])
def test_raw_photos_backups_and_partial_downloads_are_no_images(tmp_path: Path, name: str) -> None:
    root = write_images(tmp_path, ["a/1.png", "b/1.png"])
    Image.new("L", (4, 3)).save(root / "a" / name, format="tiff" if "nef" in name else "jpeg")
    listing = list_images(root)
    assert listing.files == ("a/1.png", "b/1.png")
    assert "1 file (" in listing.notes[0]


def test_files_that_are_something_else_by_name_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, ["a/1.png", "b/1.png", "a/1.xml", "a/2.json", "a/3.txt", "a/4.zip"])
    monkeypatch.setattr("kd_app.data.image_tree.find_image_signature", pytest.fail)
    assert "4 files" in list_images(tmp_path).notes[0]


def test_unusual_names_are_read(tmp_path: Path) -> None:
    names = [
        'a b/it\'s "it".png',
        "a b/line\nbreak.png",
        "ö 猫/🐈.png",
        "c;,\t/%20$HOME.png",
        "c;,\t/" + os.fsdecode(b"\xff\xfe.png"),
    ]
    source = Folder(root=write_images(tmp_path, names), channels=1, class_level=None)
    assert set(source.list_images().files) == set(names)
    assert sorted(int(np.asarray(source.read(index)).max()) for index in range(5)) == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert len(source.list_images().fingerprint) == 64


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    write_images(tmp_path / "elsewhere", ["1.png", "2.png"])
    root = write_images(tmp_path / "root", ["a/1.png", "b/1.png"])
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "b" / "more").mkdir()
    (root / "b" / "more" / "back").symlink_to(root / "b" / "more")
    (root / "b" / "ouroboros").symlink_to(root / "b" / "ouroboros")
    assert list_images(root).files == ("a/1.png", "b/1.png", "c/1.png", "c/2.png")


def test_a_broken_link_is_a_bad_image(tmp_path: Path) -> None:
    source = Folder(
        root=write_images(tmp_path, ["a/1.png", "b/1.png"]), channels=3, class_level=None
    )
    (tmp_path / "a" / "0.png").symlink_to(tmp_path / "gone.png")
    assert source.list_images().files[0] == "a/0.png"
    with pytest.raises(BadImageError, match=r"0\.png"):
        source.read(0)


def test_the_fingerprint_is_independent_of_the_path_and_covers_every_change(tmp_path: Path) -> None:
    def copy_root(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "root", tmp_path / name))

    before = list_images(
        write_images(tmp_path / "root", ["a/1.png", "a/2.png", "b/1.png"])
    ).fingerprint
    assert list_images(copy_root("copy")).fingerprint == before
    byte, name, label, gone = (copy_root(kind) for kind in ("byte", "name", "label", "gone"))
    data = bytearray((byte / "a/1.png").read_bytes())
    data[-1] ^= 1
    (byte / "a/1.png").write_bytes(data)
    (name / "a/1.png").rename(name / "a/3.png")
    (label / "b").rename(label / "c")
    (gone / "a/1.png").unlink()
    assert (
        len({before, *(list_images(root).fingerprint for root in (byte, name, label, gone))}) == 5
    )


def test_the_message_for_a_missing_root_suggests_a_similar_name(tmp_path: Path) -> None:
    write_images(tmp_path, ["photos/a/1.png"])
    assert "Did you mean 'photos'?" in expect_refusal(tmp_path / "fotos")
    assert "There is no folder" in expect_refusal(tmp_path / "no" / "photos")


def test_a_root_is_required() -> None:
    with pytest.raises(RequestError, match=r"data\.root is not set"):
        Folder(root=None, channels=3, class_level=None).list_images()


def test_a_file_as_root_is_refused_with_a_fix(tmp_path: Path) -> None:
    write_images(tmp_path, ["photos.zip", "photos.csv"])
    assert "unpack the archive" in expect_refusal(tmp_path / "photos.zip")
    assert "data=csv" in expect_refusal(tmp_path / "photos.csv")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "holds nothing" in expect_refusal(tmp_path)
    assert "holds 1 file(s), none of them an image" in expect_refusal(
        write_images(tmp_path, ["notes.txt"])
    )


def test_images_without_class_folders_are_refused_with_the_layout(tmp_path: Path) -> None:
    message = expect_refusal(write_images(tmp_path, ["1.png", "2.png"]))
    assert "2 image(s) and no class folder" in message
    assert "<root>/<class>/<image>" in message
    assert "no class folder" in expect_refusal(
        write_images(tmp_path / "ready", ["train/a/1.png", "train/b/1.png", "test/1.png"])
    )


def test_classes_that_differ_in_case_are_noted(tmp_path: Path) -> None:
    (note,) = list_images(write_images(tmp_path, ["Cat/1.png", "cat/1.png", "dog/1.png"])).notes
    assert "'Cat', 'cat' differ only in spelling" in note


def test_a_single_class_is_refused_with_the_folder_to_use(tmp_path: Path) -> None:
    photos = write_images(tmp_path / "d", ["photos/cat/1.png", "photos/dog/1.png"])
    message = expect_refusal(photos)
    assert "single class, 'photos'" in message
    assert f"data.root={photos / 'photos'}" in message
    deep = write_images(tmp_path / "deep", ["x/y/cat/1.png", "x/y/dog/1.png"])
    assert f"data.root={deep / 'x/y'}" in expect_refusal(deep)


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    assert "single class, 'cat'" in expect_refusal(
        write_images(tmp_path, ["cat/1.png", "cat/2.png"])
    )
    assert "single class, 'a'" in expect_refusal(
        write_images(tmp_path / "ready", ["train/a/1.png", "test/a/1.png"])
    )


def test_a_class_without_an_image_is_refused_by_name(tmp_path: Path) -> None:
    message = expect_refusal(write_images(tmp_path, ["cat/1.png", "dog/1.txt", "eel/1.png"]))
    assert "A class has no image" in message
    assert "'dog' (1 file (1 .txt) of other kinds)" in message
    assert "'a', 'b'" in expect_refusal(write_images(tmp_path / "none", ["a/1.txt", "b/1.txt"]))


def test_a_class_that_only_validation_or_test_have_is_refused(tmp_path: Path) -> None:
    names = ["train/a/1.png", "train/b/1.png", "test/a/1.png"]
    assert "images of 'c', but train has none" in expect_refusal(
        write_images(tmp_path / "x", [*names, "test/c/1.png"])
    )
    message = expect_refusal(
        write_images(tmp_path / "y", [*names, "train/c/1.txt", "test/c/1.png"])
    )
    assert "images of 'c', but train has none" in message
    assert "'A' and 'a'" in expect_refusal(write_images(tmp_path / "z", [*names, "test/A/1.png"]))


@pytest.mark.parametrize("more", [[], ["val/b/notes.txt"], ["test/c/notes.txt"]])
def test_validation_and_test_may_lack_a_class(tmp_path: Path, more: list[str]) -> None:
    names = ["train/a/1.png", "train/b/1.png", "val/a/1.png", "test/a/1.png", "test/b/1.png"]
    listing = list_images(write_images(tmp_path, [*names, *more]))
    assert listing.classes == ("a", "b")
    assert listing.split.count("validation") == 1


def test_predefined_splits_without_train_or_with_duplicates_are_refused(tmp_path: Path) -> None:
    assert "no train folder" in expect_refusal(
        write_images(tmp_path / "x", ["val/a/1.png", "test/a/1.png"])
    )
    assert "two folders for the same split" in expect_refusal(
        write_images(tmp_path / "y", ["train/a/1.png", "val/a/1.png", "valid/a/1.png"])
    )


def test_a_tilde_in_the_root_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_images(tmp_path / "photos", ["a/1.png", "b/1.png"])
    assert len(list_images(Path("~/photos")).files) == 2
