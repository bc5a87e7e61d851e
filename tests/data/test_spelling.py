"""Names of classes that people take for one are noted."""

import pytest

from kd_app.data.spelling import normalize_spelling, note_spellings


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("Cat ", "cat"),
        ("cat\u200b", "cat"),
        ("gro\u0308\u00dfe", "gr\u00f6sse"),
        ("007", "7"),
        ("-01.0", "-1"),
        ("0", "0"),
        ("1.50", "1.50"),
        ("n01", "n01"),
    ],
)
def test_what_people_overlook_is_left_out(name: str, plain: str) -> None:
    assert normalize_spelling(name) == plain


def test_names_that_differ_only_in_spelling_are_noted() -> None:
    (note,) = note_spellings(["7", "07", "dog", "dog"])
    assert "The classes '07', '7' differ only in spelling" in note
    assert note_spellings(["a", "b"]) == []
