"""Records of others: limits, kinds of values, and one error that names file and key."""

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_app.config import RequestError
from kd_app.config.plain_yaml import dump_yaml
from kd_app.config.records import load_record, parse_with, read_record
from kd_app.digest import seal

FIX = "Write it again."


@dataclass
class Point:
    """A record."""

    x: int
    names: list[str]


def write(folder: Path, text: str, name: str = "a.json") -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def test_a_record_is_read_by_its_schema(tmp_path: Path) -> None:
    path = write(tmp_path, '{"x": 3, "names": ["a"]}')
    assert read_record(path, Point, expected=FIX) == Point(3, ["a"])
    assert load_record(path, expected=FIX) == {"x": 3, "names": ["a"]}
    path = write(tmp_path, "x: 3\nnames: [2020-01-01]\n", "a.yaml")
    assert read_record(path, Point, expected=FIX) == Point(3, ["2020-01-01"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "nested too deeply"),
        ("[" * 100 + "]" * 100, "nested too deeply"),
        ('{"x": 1', "truncated or not JSON"),
        ("", "truncated or not JSON"),
        ('{"x": ' + "9" * 5000 + "}", "truncated or not JSON"),
        ('{"x": 100000000000000000000000000000}', "x=1000+ is too large"),
        ('{"names": ["a", "\\ud800"]}', r"names.1='.*' is not valid UTF-8"),
        ('{"x": 1e999}', "x=inf is not a finite number"),
        ("\ud800", "not UTF-8"),
        ('{"x": 1}', "names: Field required"),
        ('{"x": "b", "names": []}', r"x: Input should be a valid integer.*got 'b'"),
        ('{"x": NaN, "names": []}', "x: Input should be a valid integer.*got None"),
        ("[]", "dictionary"),
        ("null", "dictionary"),
    ],
)
def test_the_error_names_file_and_key(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(RequestError, match=message) as raised:
        read_record(path, Point, expected=FIX)
    assert str(path) in str(raised.value)
    assert str(raised.value).endswith(FIX)
    assert "\n" not in str(raised.value)


def test_a_bomb_of_aliases_is_refused_before_it_expands(tmp_path: Path) -> None:
    lines = ["x0: &a0 [l, l, l, l, l, l, l, l, l]"]
    lines += [f"x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    for text in ("\n".join(lines), "x: &x {y: *x}", "x: &x 1", "{a: " * 20_000):
        with pytest.raises(RequestError, match=r"anchor or alias|nested too deeply"):
            load_record(write(tmp_path, text, "a.yaml"), expected=FIX)


@pytest.mark.parametrize(
    "text", ["x: !!binary aGk=", "? [1]\n: 2", "x: !!set {a}", "!!str", "x: ["]
)
def test_yaml_holds_plain_values(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text, "a.yaml")
    with pytest.raises(RequestError, match="can't be read"):
        read_record(path, dict[str, Any], expected=FIX)


def test_shared_values_are_written_without_anchors() -> None:
    shared = ["a"]
    text = dump_yaml({"x": shared, "y": shared})
    assert "&" not in text
    assert yaml.safe_load(text) == {"x": ["a"], "y": ["a"]}


def test_only_regular_files_of_a_bounded_size_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.json"))
        for name in ("folder.json", "pipe.json", "zero.json", "s.json"):
            with pytest.raises(RequestError, match=f"{name}' can't be read"):
                load_record(tmp_path / name, expected=FIX)
    with pytest.raises(RequestError, match=r"There is no .*none.json"):
        load_record(tmp_path / "none.json", expected=FIX)
    monkeypatch.setattr("kd_app.config.records.MAX_BYTES", 20)
    with pytest.raises(RequestError, match="more than 20 bytes"):
        load_record(write(tmp_path, json.dumps(["long"] * 9)), expected=FIX)


@pytest.mark.parametrize(
    "error", [KeyError("a"), OverflowError("b"), RecursionError(), IndexError()]
)
def test_an_error_of_a_parser_names_the_file(error: Exception) -> None:
    def parse() -> int:
        raise error

    with pytest.raises(RequestError, match=r"^'a.json' can't be read: .*Write it again.$"):
        parse_with(Path("a.json"), parse, expected=FIX)


def test_a_changed_json_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    for content in (seal({"a": 1}), {"a": 1}, [1]):
        path.write_text(json.dumps(content), encoding="utf-8")
        plain = {"a": 1} if isinstance(content, dict) else content
        assert load_record(path, expected="", is_sealed=True) == plain
    path.write_text(json.dumps({**seal({"a": 1}), "a": 2}), encoding="utf-8")
    with pytest.raises(RequestError, match="has changed since kd_app wrote it, by hand or by"):
        load_record(path, expected="", is_sealed=True)
