"""Tests of CSV files of images: content and errors."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_app.config import RequestError
from kd_app.data.csv_file import CsvFile


def table(folder: Path, text: str, name: str = "labels.csv") -> Path:
    """Write a table, and 2x2 images of different shades for the paths in `text`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8", newline="")
    for shade, image in enumerate(("a.png", "b.png", "sub/c.png", "sub/d e.png")):
        (folder / image).parent.mkdir(exist_ok=True)
        Image.new("L", (2, 2), shade).save(folder / image)
    return folder / name


def source(path: Path) -> CsvFile:
    return CsvFile(root=path, channels=1)


def refused(path: Path) -> str:
    with pytest.raises(RequestError) as raised:
        source(path).list_images()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_images_keep_the_order_of_the_rows(tmp_path: Path) -> None:
    reader = source(table(tmp_path, "path,label\nsub/c.png,dog\na.png,cat\nsub/d e.png,dog\n"))
    listing = reader.list_images()
    assert listing.files == ("sub/c.png", "a.png", "sub/d e.png")
    assert listing.classes == ("cat", "dog")
    assert listing.target.tolist() == [1, 0, 1]
    assert set(listing.split) == set(listing.group) == {""}
    assert [int(np.asarray(reader.read(index)).max()) for index in range(3)] == [2, 0, 3]


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
    assert "Add a labels.csv" in refused(tmp_path)
    table(tmp_path, "path,label\n", "photos.csv")
    assert f"data.root={tmp_path / 'photos.csv'}" in refused(tmp_path)
    assert "Did you mean 'photos.csv'?" in refused(tmp_path / "photo.csv")


@pytest.mark.parametrize(
    "text",
    [
        "path;label\na.png;x,1\nb.png;y\n",
        "path\tlabel\r\na.png\tx,1\r\nb.png\ty\r\n",
        '\ufeff"Path", Label \na.png,"x,1"\n\nb.png, y\n',
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
        ("file,label\na.png,x\n", "column 'path' .* is missing"),
        ("path,labels\na.png,x\n", "Did you mean 'labels'"),
        ("path,label,label\na.png,x,y\n", "column 'label' .* is twice"),
        ("", "column 'path' .* nothing"),
        ("path,label\n", "no rows"),
        ("path,label\na.png,x\nb.png,\n", "Row 3 .* no label"),
        ("path,label\na.png,x\n,y\n", "Row 3 .* no path"),
        ("path,label\na.png,x\nb.png\n", "Row 3 .* no label"),
        ("path,label,split\na.png,x,train\nb.png,y,vall\n", "Row 3 .*'vall'. Did you mean 'val'"),
        (
            "path,label\na.png,x\nb.png,y\nnone.png,y\nnothing.png,y\n",
            "Row 4 .*'none.png', where there is no file. So do 1 other",
        ),
        ("path,label\na.png,x\nb.png,y\nsub/../a.png,y\n", "Rows 2 and 4 .*'a.png'"),
        ("path,label\na.png,x\n../b.png,y\n", "Row 3 .* outside"),
        ("path,label\na.png,x\n/etc/passwd,y\n", "Row 3 .* outside"),
        ("path,label\na.png,x\n.,y\n", "Row 3 .* outside"),
        ("path,label\na.png,x\nsub,y\n", "Row 3 .* no file"),
        ("path,label\na.png,x\nb.png,x\n", "single class, 'x'"),
        ('path,label\na.png,"x\n', "can't be read"),
    ],
)
def test_errors_name_the_row(tmp_path: Path, text: str, message: str) -> None:
    path = table(tmp_path, text)
    with pytest.raises(RequestError, match=message) as raised:
        source(path).list_images()
    assert "labels.csv" in str(raised.value)


def test_another_encoding_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "")
    path.write_bytes("path,label\na.png,größe\n".encode("latin-1"))
    assert "UTF-8" in refused(path)


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
