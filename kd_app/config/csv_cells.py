"""Texts in the CSV files that kd_app writes.

A spreadsheet takes a cell that begins with one of ``= + - @``, a tab or a carriage
return for a formula, and some run programs. Such a text gets an apostrophe in front,
which spreadsheets do not show; so does one that begins with apostrophes before such a
character, so that `restore_cell` restores every text.
"""

from collections.abc import Iterable
from typing import Any, Final

_MARKS: Final = ("=", "+", "-", "@", "\t", "\r")
_QUOTE: Final = "'"


def quote_cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula. Numbers are unchanged. Bytes of
    file names that are no UTF-8 become escapes.
    """
    if not isinstance(value, str):
        return value
    text = escape_undecodable(value)
    return f"{_QUOTE}{text}" if text.lstrip(_QUOTE).startswith(_MARKS) else text


def restore_cell(text: str) -> str:
    """The text before `quote_cell`."""
    is_quoted = text.startswith(_QUOTE) and text.lstrip(_QUOTE).startswith(_MARKS)
    return text[len(_QUOTE) :] if is_quoted else text


def write_rows(writer: Any, rows: Iterable[Iterable[Any]]) -> None:
    """Write rows with quoted cells to a `csv.writer`."""
    for row in rows:
        writer.writerow([quote_cell(value) for value in row])


def escape_undecodable(text: str) -> str:
    """A text with the bytes of file names that are no UTF-8 as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
