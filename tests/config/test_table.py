"""Tables as other programs write them, and files that are none."""

import gzip
from pathlib import Path

import pytest

from kd_app.config import RequestError
from kd_app.config.table import read_table
from kd_app.data.image_list import read_image_list


def write(folder: Path, content: bytes, name: str = "t.csv") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def expect_refusal(file: Path) -> str:
    with pytest.raises(RequestError) as raised:
        read_table(file, ["path", "label"])
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_delimiter_is_the_one_that_yields_the_columns(
    tmp_path: Path, delimiter: str, end: str
) -> None:
    # more of the other delimiters in the header than of the right one
    header = delimiter.join(("path", "label", '"a,b;c|d, e; f| g\th\ti,;|"'))
    row = delimiter.join(("a.png", "x", '"1,5"'))
    table = read_table(write(tmp_path, f"{header}{end}{row}{end}{end}".encode()), ["path", "label"])
    assert table.columns[:2] == ("path", "label")
    assert [(number, list(cells)) for number, cells in table.rows] == [(2, ["a.png", "x", "1,5"])]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_name_themselves_are_read(tmp_path: Path, encoding: str) -> None:
    file = write(tmp_path, "sep=;\r\nPath;Größe\r\nä.png;1\r\n".encode(encoding))
    if encoding == "utf-16":
        file.write_bytes("path\tGröße\r\nä.png\t1\r\n".encode("utf-16"))
    table = read_table(file, ["path"])
    assert table.find_column("path") == 0
    assert table.find_column("GRÖSSE") is None
    assert table.find_column("größe") == 1
    assert list(table.rows[0].cells) == ["ä.png", "1"]


def test_other_encodings_and_files_are_refused_with_what_to_do(tmp_path: Path) -> None:
    text = "path,label\na.png,x\nb.png,größe\n"
    message = expect_refusal(write(tmp_path, text.encode("latin-1")))
    assert "in line 3" in message
    assert "iconv -f WINDOWS-1252 -t UTF-8 t.csv" in message
    assert "a workbook (.xlsx" in expect_refusal(write(tmp_path, b"PK\x03\x04..."))
    assert "'CSV (UTF-8)'" in expect_refusal(write(tmp_path, b"\xd0\xcf\x11\xe0", "t.xls"))
    assert "a Parquet file" in expect_refusal(write(tmp_path, b"PAR1"))
    assert "a compressed file" in expect_refusal(write(tmp_path, gzip.compress(text.encode())))
    assert "is a .json file" in expect_refusal(write(tmp_path, b"{}", "t.json"))
    assert "not a regular file" in expect_refusal(tmp_path)
    assert "in line 2" in expect_refusal(write(tmp_path, b'path,label\na.png,"x\n'))


def test_a_list_of_images_is_read_by_the_same_rules(tmp_path: Path) -> None:
    for text in (b"path|x\na.png|1\n", b"\xef\xbb\xbfPATH\na.png\n", b"y;path;z\n1;a.png;2\n"):
        assert read_image_list(str(write(tmp_path, text))).names == ("a.png",)
    for text, message in (
        (b"a.png\nb.png\n", "no header"),
        (b"file\na.png\n", "no column 'path'"),
        (b"path,x\n,1\n", "1 of 1 rows have no path; the first is row 2"),
        (b"path\n", "lists no images"),
        (b"path,path\na,b\n", "twice"),
    ):
        with pytest.raises(RequestError, match=message):
            read_image_list(str(write(tmp_path, text)))
