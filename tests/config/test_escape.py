"""Texts for a terminal."""

import pytest

from kd_app.config.escape import escape_controls


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b]0;title\x07red", r"\x1b]0;title\x07red"),
        ("over\rwritten", r"over\rwritten"),
        ("\x9b31m", r"\x9b31m"),
        ("a\tb\nc äöü 日本 🐱", "a\tb\nc äöü 日本 🐱"),
    ],
)
def test_only_control_characters_are_escaped(text: str, expected: str) -> None:
    assert escape_controls(text) == expected
