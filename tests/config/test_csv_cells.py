"""Cells of CSV files that no spreadsheet takes for a formula."""

import csv
import io

import pytest

from kd_app.config.csv_cells import quote_cell, restore_cell, write_rows

TEXTS = [
    "=1+1",
    "+1",
    "-rf",
    "@x",
    "\tx",
    "\rx",
    "'=1",
    "''-a",
    "plain",
    "it's",
    "'quoted'",
    "",
    "'",
    "a=b",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back_as_it_was_and_begins_with_no_mark(text: str) -> None:
    quoted = quote_cell(text)
    assert not quoted.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert restore_cell(quoted) == text


def test_only_texts_are_quoted() -> None:
    assert [quote_cell(value) for value in (-1.5, -3, None, "a", "=a")] == [
        -1.5,
        -3,
        None,
        "a",
        "'=a",
    ]
    assert quote_cell("K\udce4se") == "K\\udce4se"


def test_rows_are_written_quoted() -> None:
    text = io.StringIO()
    write_rows(csv.writer(text, lineterminator="\n"), [["=a", -1], ["b", "-2"]])
    assert text.getvalue() == "'=a,-1\nb,'-2\n"
