"""Tests of CSV files of images: content and errors."""

import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kd_app.config import RequestError
from kd_app.data.csv_file import CsvFile
from kd_app.data.split_column import SplitName
from kd_app.data.unread_columns import Role


def table(folder: Path, text: str, name: str = "labels.csv") -> Path:
    """Write a table, and 2x2 images of different shades for the paths in `text`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8", newline="")
    for shade, image in enumerate(("a.png", "b.png", "sub/c.png", "sub/d e.png")):
        (folder / image).parent.mkdir(exist_ok=True)
        Image.new("L", (2, 2), shade).save(folder / image)
    return folder / name


def source(
    path: Path,
    columns: dict[Role, str | None] | None = None,
    *,
    images: str | None = None,
    suffix: str | None = None,
    splits: dict[str | int | float | bool, SplitName] | None = None,
    whole_labels: bool = False,
) -> CsvFile:
    return CsvFile(
        root=path,
        channels=1,
        columns=columns or {},
        splits=splits,
        whole_labels=whole_labels,
        images=None if images is None else Path(images),
        suffix=suffix,
    )


def expect_refusal(
    path: Path, columns: dict[Role, str | None] | None = None, **settings: Any
) -> str:
    with pytest.raises(RequestError) as raised:
        source(path, columns, **settings).list_images()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_rows_in_another_order_are_the_same_data(tmp_path: Path) -> None:
    rows = ["sub/c.png,dog", "a.png,cat", "sub/d e.png,dog"]
    for order in (rows, rows[::-1]):
        reader = source(table(tmp_path, "\n".join(["path,label", *order])))
        listing = reader.list_images()
        assert listing.files == ("a.png", "sub/c.png", "sub/d e.png")
        assert listing.classes == ("cat", "dog")
        assert listing.target.tolist() == [0, 1, 1]
        assert set(listing.split) == set(listing.group) == {""}
        assert [int(np.asarray(reader.read(index)).max()) for index in range(3)] == [0, 2, 3]


def test_split_and_group_are_read_if_present(tmp_path: Path) -> None:
    text = (
        "group,note,label,path,split\n"
        "g1,x,cat,a.png,train\n"
        "g1,x,cat,b.png,\n"
        ",x,dog,sub/c.png,Valid\n"
        "g2,x,dog,sub/d e.png,test\n"
    )
    listing = source(table(tmp_path, text)).list_images()
    assert listing.split == ("train", "", "validation", "test")
    assert listing.group == ("g1", "g1", "", "g2")


def test_the_root_is_the_table_or_the_folder_that_holds_it(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label\na.png,x\nb.png,y\n")
    other = table(tmp_path, "path,label\na.png,x\nb.png,y\n", "photos.csv")
    assert source(path).list_images() is not None
    assert (
        source(tmp_path).list_images().fingerprint
        == source(path).list_images().fingerprint
        == source(other).list_images().fingerprint
    )


def test_the_message_for_a_missing_table_lists_other_tables(tmp_path: Path) -> None:
    assert "Add a labels.csv" in expect_refusal(tmp_path)
    table(tmp_path, "path,label\n", "photos.csv")
    assert f"data.root={tmp_path / 'photos.csv'}" in expect_refusal(tmp_path)
    assert "Did you mean 'photos.csv'?" in expect_refusal(tmp_path / "photo.csv")


@pytest.mark.parametrize(
    "text",
    [
        "path;label\na.png;x,1\nb.png;y\n",
        "path\tlabel\r\na.png\tx,1\r\nb.png\ty\r\n",
        '\ufeff"Path", Label \na.png,"x,1"\n\nb.png, y\n',
        '\n# by me\n# path,label\na.png,"x,1"\nb.png,y\n',
        '\r\n"sep=;"\r\npath;label\r\na.png;x,1\r\nb.png;y\r\n',
    ],
)
def test_separators_and_encodings_of_spreadsheets_are_read(tmp_path: Path, text: str) -> None:
    listing = source(table(tmp_path, text)).list_images()
    assert listing.files == ("a.png", "b.png")
    assert listing.classes == ("x,1", "y")


def test_whole_numbers_are_sorted_numerically(tmp_path: Path) -> None:
    assert source(
        table(tmp_path, "path,label\na.png,10\nb.png,9\nsub/c.png,0\n")
    ).list_images().classes == ("0", "9", "10")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,x\n", "no column 'path'.*: file, label.*columns.path=<its name>"),
        ("path,labels\na.png,x\n", "Did you mean 'labels'"),
        ("path,label,label\na.png,x,y\n", "column 'label' twice"),
        ("", "no column 'path'.* nothing"),
        ("a.png,x\nb.png,y\n", "no header: its first row is a.png, x. Add a first row"),
        ("path,label\n", "no rows"),
        ("path,label\na.png,x\nb.png,\n", "Row 3 .* no label"),
        ("path,label\na.png,x\n,y\n", "Row 3 .* no path"),
        ("path,label\na.png,x\nb.png\n", "Row 3 .* no label"),
        ("path,label,split\na.png,x,train\nb.png,y,vall\n", "Row 3 .*'vall'. Did you mean 'val'"),
        (
            "path,label\na.png,x\nb.png,y\nnone.png,y\nnothing.png,y\n",
            "Row 4 .*'none.png', where there is no file. So do 1 other",
        ),
        ("path,label\na.png,x\nb.png,y\nsub/../a.png,y\n", "Rows 2 and 4 .*'sub/../a.png'"),
        ("path,label\na.png,x\na.png,x\na.png,x\n", "label 'x'.*rows, 2 in all"),
        ("path,label\na.png,x\na.png,y\n", "labels 'x' and 'y'; an image has one label"),
        ("path,label\na.png,x\n../b.png,y\n", "Row 3 .* no file"),
        ("path,label\na.png,x\n/etc/passwd,y\n", "Row 3 .* outside.*only folder.* '/'"),
        ("path,label\na.png,x\n.,y\n", "Row 3 .* a folder"),
        ("path,label\na.png,x\nsub,y\n", "Row 3 .* a folder"),
        ("path,label\na.png,x\nC:\\d\\e.png,y\n", "Row 3 .*Only paths on this machine"),
        ("path,label\nC:\\me\\sub\\c.png,y\n", "There is .*like 'sub/c.png'"),
        ("path,label\n/content/drive/a.png,y\n", "There is .*like 'a.png'"),
        ("path,label\nSUB/C.PNG,y\n", "There is .*sub/c.png', which differs in case"),
        ("path,label\nfile:///home/me/sub/c.png,y\n", "There is .*like 'sub/c.png'"),
        ("path label\na.png x\n", "separated by something else than comma"),
        ("path,label\na.png,x\0\n", "bytes that are 0, as in UTF-16 without"),
        ("# path,label\n\na.png,x\n,y\n", "Row 4 .* no path"),
        ("filename,cat\na.png,1\n", "no column 'path'.* cat. The column 'filename' holds names"),
        ("path,cat,dog\na.png,0,1\nb.png,1,0\n", "'cat', 'dog' hold 0 and 1, as if each were a"),
        ("path,label\na.png,x\nhttps://a.org/e.png,y\n", "Row 3 .*Only paths on this machine"),
        ("path,label\na.png,x\nb.png,y,z\n", "Row 3 .* has 3 cells, the header has 2: b.png, y"),
        ("path,label\na,x\n", "Row 2 .*Did you mean data.source.suffix=.png"),
        ("path,label\nc.png,x\n", "Row 2 .*Did you mean data.source.images=sub"),
        ("path,label\nc,x\n", "Did you mean data.source.images=sub data.source.suffix=.png"),
        ("path,label,split\na.png,x,2\n", "split '2'. A number does not tell"),
        ("path,label,set\na.png,x,train\nb.png,y,TEST\n", "column 'set' .*columns.split='set'"),
        ("path,label\na.png,x\nb.png,x\n", "single class, 'x'"),
        ('path,label\na.png,"x\n', "can't be read"),
    ],
)
def test_errors_name_the_row(tmp_path: Path, text: str, message: str) -> None:
    path = table(tmp_path, text)
    with pytest.raises(RequestError, match=message) as raised:
        source(path).list_images()
    assert "labels.csv" in str(raised.value)


def test_columns_endings_and_folders_of_other_tables_are_set(tmp_path: Path) -> None:
    text = "id;breed;width;fold;owner\nc;pug;4;train;1\nd e.PNG;lab;5;;1\n"
    path = table(tmp_path, text)
    (tmp_path / "sub" / "d e.png").rename(tmp_path / "sub" / "d e.PNG")
    columns: dict[Role, str | None] = {
        "path": "ID",
        "label": "breed",
        "split": "fold",
        "group": "owner",
    }
    reader = source(path, columns, images="sub", suffix="png")
    listing = reader.list_images()
    assert listing.files == ("c.png", "d e.PNG")
    assert listing.classes == ("lab", "pug")
    assert listing.split == ("train", "")
    assert listing.group == ("1", "1")
    assert listing.notes == ("Columns of labels.csv that are not read: width.",)
    assert reader.read(0).size == (2, 2)
    assert "There is no folder" in expect_refusal(path, columns, images="nowhere")
    assert "columns.label=null, but" in expect_refusal(path, {"path": "id", "label": None})
    assert "no column 'fold'" in expect_refusal(table(tmp_path, "path,label\n"), {"split": "fold"})


def test_unread_columns_are_noted_with_what_they_may_be(tmp_path: Path) -> None:
    text = "path,label,phase,patient_id,PatientAge,\na.png,x,0,7,30,\nb.png,y,1,7,30,\n"
    path = table(tmp_path, text)
    unread, phase, patient = source(path).list_images().notes
    assert unread.endswith("not read: phase, patient_id, PatientAge.")
    assert "set data.source.columns.split='phase' and 'data.source.splits={0: test}'" in phase
    assert "data.source.columns.group='patient_id'" in patient
    distinct = table(tmp_path, "path,label,patient_id\na.png,x,1\nb.png,y,2\n", "distinct.csv")
    assert len(source(distinct).list_images().notes) == 1
    ruled_out = source(path, {"split": None, "group": None}).list_images()
    assert ruled_out.notes == (unread,)
    assert source(path, {"split": None, "group": "patient_id"}).list_images().group == ("7", "7")


def test_a_column_of_splits_may_be_read_or_ruled_out(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label,Set\na.png,x,train\nb.png,y,test\nsub/c.png,y,\n")
    assert "images for testing would be trained on" in expect_refusal(path)
    assert source(path, {"split": "Set"}).list_images().split == ("train", "test", "")
    assert set(source(path, {"split": None}).list_images().split) == {""}
    table(tmp_path, "path,label,split,set\na.png,x,train,test\nb.png,y,test,train\n")
    assert source(path).list_images().split == ("train", "test")


@pytest.mark.parametrize(
    ("column", "cells", "splits"),
    [
        ("is_valid", "FALSE,True,False,0", ["train", "validation", "train", "train"]),
        ("valid", "no,yes,,no", ["train", "validation", "", "train"]),
        ("is_train", "1,0,1,1", ["train", "test", "train", "train"]),
        ("is_training_img", "1.0,0.0,1.0,1.0", ["train", "test", "train", "train"]),
        ("HoldOut", "f,t,f,f", ["train", "test", "train", "train"]),
        ("Usage", "Training,PublicTest,PrivateTest,Training", ["train", "test", "test", "train"]),
        ("set", "train,eval,test,train_set", ["train", "validation", "test", "train"]),
    ],
)
def test_a_column_that_states_the_split_is_refused_unread_and_read_when_named(
    tmp_path: Path, column: str, cells: str, splits: list[str]
) -> None:
    names = ("a.png", "b.png", "sub/c.png", "sub/d e.png")
    rows = zip(names, cells.split(","), "xyxy", strict=True)
    path = table(tmp_path, f"path,{column},label\n" + "".join(f"{','.join(r)}\n" for r in rows))
    message = expect_refusal(path)
    assert f"Set data.source.columns.split='{column}' to use it (" in message
    assert "data.source.columns.split=null" in message
    listing = source(path, {"split": column}).list_images()
    assert list(listing.split) == splits
    assert f"The column '{column}' is read as the split: train is " in listing.notes[0]
    assert set(source(path, {"split": None}).list_images().split) == {""}


def test_numbers_of_folds_are_refused_unread_and_read_with_the_one_to_test_on(
    tmp_path: Path,
) -> None:
    path = table(tmp_path, "path,label,fold\na.png,x,0\nb.png,y,1\nsub/c.png,x,2\n")
    message = expect_refusal(path)
    assert "Set data.source.columns.split='fold' and 'data.source.splits={0: test}'" in message
    assert "'data.source.splits={0: test}'" in expect_refusal(path, {"split": "fold"})
    listing = source(path, {"split": "fold"}, splits={1: "test", "2": "val"}).list_images()
    assert listing.split == ("train", "test", "validation")
    assert listing.notes == (
        "The column 'fold' is read as the split: train is 0 (1 rows); validation is 2 (1 rows);"
        " test is 1 (1 rows).",
    )
    assert "the value '7', which no row has" in expect_refusal(
        path, {"split": "fold"}, splits={7: "val"}
    )
    assert "splits has no effect" in expect_refusal(path, {"split": None}, splits={0: "test"})


def test_a_column_that_only_looks_like_a_split_is_no_refusal(tmp_path: Path) -> None:
    for head, cells in (("valid", "1,1"), ("phase", "arterial,venous"), ("score", "0,1")):
        first, second = cells.split(",")
        path = table(tmp_path, f"path,label,{head}\na.png,x,{first}\nb.png,y,{second}\n")
        assert set(source(path).list_images().split) == {""}


def test_labels_that_differ_in_spelling_or_mean_none_are_noted(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label\na.png,Cat\nb.png,cat\nsub/c.png,NaN\n")
    case, missing = source(path).list_images().notes
    assert case.startswith("The classes 'Cat', 'cat' differ only in spelling: case")
    assert "The label 'NaN' is read as a class. If it means that the label is missing" in missing


def test_a_folder_in_the_place_of_an_image_is_named(tmp_path: Path) -> None:
    assert "has the path 'sub', a folder. Expected: one row for each image" in expect_refusal(
        table(tmp_path, "path,label\na.png,x\nsub,y\n")
    )


def test_amounts_in_the_place_of_labels_are_noted(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label\na.png,0.25\nb.png,1.5\nsub/c.png,2.0\n")
    assert "An amount can't be predicted here" in source(path).list_images().notes[0]


def test_names_are_found_in_the_other_form_of_their_accents(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label\na.png,x\nb.png,y\n")
    (tmp_path / "a.png").rename(tmp_path / unicodedata.normalize("NFD", "größe.png"))
    path.write_text(unicodedata.normalize("NFC", "path,label\ngröße.png,x\nb.png,y\n"))
    assert source(path).list_images().files == ("b.png", unicodedata.normalize("NFD", "größe.png"))


def test_a_form_for_predictions_is_not_suggested_as_the_table(tmp_path: Path) -> None:
    for name in ("sample_submission.csv", "train.csv"):
        table(tmp_path, "path,label\n", name)
    assert f"data.root={tmp_path / 'train.csv'}" in expect_refusal(tmp_path)


def test_several_labels_in_a_cell_are_refused_unless_they_are_one_class(tmp_path: Path) -> None:
    path = table(tmp_path, "path;label\na.png;cat\nb.png;dog\nsub/c.png;cat,dog\n")
    message = expect_refusal(path)
    assert "Row 4" in message
    assert "'cat,dog', which seems to be the labels 'cat', 'dog'; 1 of 3 rows" in message
    listing = source(path, whole_labels=True).list_images()
    assert listing.classes == ("cat", "cat,dog", "dog")
    assert listing.notes == ()


def test_paths_of_windows_and_paths_out_of_the_folder_are_read(tmp_path: Path) -> None:
    names = source(table(tmp_path / "d", "path,label\na.png,x\nsub\\c.png,y\n")).list_images()
    assert names.files == ("a.png", "sub/c.png")
    (tmp_path / "tables").mkdir()
    text = f"path,label\n../d/a.png,x\n{tmp_path}/d/sub/c.png,y\n"
    (tmp_path / "tables" / "x.csv").write_text(text)
    reader = source(tmp_path / "tables" / "x.csv")
    assert reader.list_images().files == ("a.png", "sub/c.png")
    assert reader.list_images().fingerprint == names.fingerprint
    assert reader.read(1).size == (2, 2)


def test_a_folder_of_several_tables_lists_them(tmp_path: Path) -> None:
    table(tmp_path, "path,label\n", "train.csv")
    table(tmp_path, "path,label\n", "test.tsv")
    assert "holds train.csv, test.tsv" in expect_refusal(tmp_path)


def test_an_absolute_path_inside_is_made_relative(tmp_path: Path) -> None:
    relative = source(table(tmp_path / "x", "path,label\na.png,x\nb.png,y\n")).list_images()
    absolute = source(
        table(tmp_path / "y", f"path,label\n{tmp_path / 'y' / 'a.png'},x\n./b.png,y\n")
    ).list_images()
    assert absolute.files == relative.files
    assert absolute.fingerprint == relative.fingerprint


def test_a_relative_root_is_equivalent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path, "path,label\na.png,x\nb.png,y\n")
    monkeypatch.chdir(tmp_path)
    assert (
        source(Path("labels.csv")).list_images().fingerprint
        == source(path).list_images().fingerprint
    )
    assert source(Path("labels.csv")).read(1).size == (2, 2)


def test_the_fingerprint_covers_labels_splits_groups_and_bytes(tmp_path: Path) -> None:
    texts = [
        "path,label,split,group\na.png,x,train,g\nb.png,y,,\nsub/c.png,y,,\n",
        "path,label,split,group\na.png,x,train,g\nb.png,x,,\nsub/c.png,y,,\n",
        "path,label,split,group\na.png,x,,g\nb.png,y,,\nsub/c.png,y,,\n",
        "path,label,split,group\na.png,x,train,\nb.png,y,,\nsub/c.png,y,,\n",
    ]
    fingerprints = [
        source(table(tmp_path / str(number), text)).list_images().fingerprint
        for number, text in enumerate(texts)
    ]
    shutil.copytree(tmp_path / "0", tmp_path / "moved")
    assert source(tmp_path / "moved").list_images().fingerprint == fingerprints[0]
    Image.new("L", (2, 2), 200).save(tmp_path / "moved" / "a.png")
    assert len({*fingerprints, source(tmp_path / "moved").list_images().fingerprint}) == 5
