"""Tests of content hashes."""

import io
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_app.data import fingerprint
from kd_app.data.fingerprint import (
    DigestBook,
    add_fingerprint,
    hash_file,
    hash_files,
    use_digests,
)
from kd_app.data.source import Listing


@given(data=st.binary(max_size=300), place=st.integers(0, 299))
def test_a_whole_digest_covers_every_byte(data: bytes, place: int) -> None:
    changed = bytearray(data or b"\0")
    changed[place % len(changed)] ^= 1
    before, after, longer = (
        hash_file(io.BytesIO(content), whole=True)
        for content in (data, bytes(changed), data + b"\0")
    )
    assert len({before, after, longer}) == 3 if data else before != longer


@pytest.mark.parametrize(
    ("place", "changes"),
    [(0, True), (4095, True), (4096, False), (15_903, False), (15_904, True), (19_999, True)],
)
def test_a_partial_digest_covers_4_kib_at_each_end(place: int, changes: bool) -> None:
    data = bytearray(20_000)
    before = hash_file(io.BytesIO(data), whole=False)
    data[place] = 1
    assert (hash_file(io.BytesIO(data), whole=False) != before) is changes
    assert hash_file(io.BytesIO(bytes(20_001)), whole=False) != before


def test_files_are_hashed_whole_up_to_the_limit_of_all_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / str(number) for number in range(600)]
    for number, path in enumerate(paths):
        path.write_bytes(number.to_bytes(4, "big") * (5000 if number == 7 else 3))
    whole = hash_files(paths)
    assert whole == [hash_file(io.BytesIO(path.read_bytes()), whole=True) for path in paths]
    monkeypatch.setattr(fingerprint, "WHOLE_LIMIT", 27_000)
    ends = hash_files(paths)
    assert [number for number in range(600) if whole[number] != ends[number]] == [7]


def test_a_missing_file_has_an_empty_digest(tmp_path: Path) -> None:
    assert hash_files([tmp_path / "gone"]) == [b""]


def test_the_fingerprint_covers_every_part_of_a_listing() -> None:
    def of(
        classes: str = "xy",
        files: str = "ab",
        target: tuple[int, int] = (0, 1),
        split: str = "__",
        group: str = "__",
        contents: str = "12",
    ) -> str:
        listing = Listing(
            tuple(classes), tuple(files), np.array(target), tuple(split), tuple(group), ""
        )
        return add_fingerprint(listing, [content.encode() for content in contents]).fingerprint

    assert of() == of()
    others = [
        of(classes="xz"),
        of(files="ac"),
        of(target=(1, 0)),
        of(split="t_"),
        of(group="g_"),
        of(contents="13"),
        of(files="ba"),
        of(contents="21"),
    ]
    assert len({of(), *others}) == 9


def test_a_book_has_digests_of_unchanged_files_only(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b")]
    for file in files:
        file.write_bytes(file.name.encode() * 20_000)
    book = DigestBook(tmp_path / "stages" / "book")
    with use_digests(book):
        first = hash_files(files)
    book.save()
    files[0].write_bytes(b"c" * 20_000)
    again = DigestBook(tmp_path / "stages" / "book")
    with (
        use_digests(again),
        patch("kd_app.data.fingerprint.hash_file", return_value=b"new") as hashed,
    ):
        assert hash_files(files) == [b"new", first[1]]
        assert hashed.call_count == 1
        assert hash_files(files, whole=False) == [b"new", b"new"]


def test_a_damaged_book_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    book = DigestBook(tmp_path / "book")
    with use_digests(book):
        hash_files([tmp_path / "a"])
    book.save()
    content = (tmp_path / "book").read_bytes()
    for damaged in (b"", content[:100], content.replace(b"digests", b"digestz")):
        (tmp_path / "book").write_bytes(damaged)
        assert DigestBook(tmp_path / "book").open() == {}
    assert DigestBook(tmp_path / "none").open() == {}
