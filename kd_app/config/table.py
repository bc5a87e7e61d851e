"""Tables that users bring: CSV files as spreadsheets, pandas and Kaggle write them."""

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kd_app.config.errors import RequestError, list_some, suggest_closest
from kd_app.config.regular_file import open_regular

TABLES = (".csv", ".tsv")
"""Endings of the files that are tables."""
_DELIMITERS = ",;\t|"
_SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|])"?\s*')
"""A first line of Excel that names the delimiter."""
_BINARY = {
    b"PK\x03\x04": "a workbook (.xlsx, .ods) or an archive",
    b"\xd0\xcf\x11\xe0": "an Excel workbook (.xls)",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a compressed file (.gz)",
}
_ENDINGS = {".xlsx", ".xls", ".ods", ".json", ".jsonl", ".parquet"}
_IS_FILE = re.compile(r"[^\s.]\.(jpe?g|png|bmp|gif|tiff?|webp)$", re.IGNORECASE)
_SHOWN = 12


class Row(NamedTuple):
    """The cells of one row; `number` counts as a spreadsheet does: the header is 1."""

    number: int
    cells: Sequence[str]


@dataclass(frozen=True)
class CsvTable:
    """A table with a header; names and cells are stripped of spaces."""

    file: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def find_column(self, name: str) -> int | None:
        """Return the position of a column, None if there is none.

        Capital letters count only if they tell two columns apart. Raises `RequestError`
        for a name that two columns have.
        """
        places = [place for place, each in enumerate(self.columns) if each == name] or [
            place for place, each in enumerate(self.columns) if each.lower() == name.lower()
        ]
        if len(places) > 1:
            raise RequestError(
                f"{str(self.file)!r} has the column {name!r} twice, and which one to read is"
                " unclear. Rename or remove one."
            )
        return places[0] if places else None

    def list_cells(self, place: int) -> list[str]:
        """Return the cells of a column, '' for rows that end before it."""
        return [row.cells[place] if place < len(row.cells) else "" for row in self.rows]

    def require_column(self, name: str, fix: str, *, hint: str = "") -> int:
        """Return the position of a column; raise `RequestError` without it.

        fix: the last sentence of the message. hint: what was probably meant, instead of
        the most similar name.
        """
        place = self.find_column(name)
        if place is not None:
            return place
        known = self.columns
        some = list_some(known, _SHOWN)
        if any(map(_IS_FILE.search, known)):
            raise RequestError(
                f"{str(self.file)!r} has no header: its first row is {some}. Add a first row with"
                f" the names of the columns. {fix}"
            )
        if len(known) == 1 and re.search(rf"\b{re.escape(name)}\b", known[0], re.IGNORECASE):
            hint = (
                "Its columns seem to be separated by something else than comma, semicolon, tab or"
                " pipe, which are read: replace it. "
            )
        raise RequestError(
            f"{str(self.file)!r} has no column {name!r}; its header has: {some or 'nothing'}."
            f" {hint or suggest_closest(name, known)}{fix}"
        )


def read_table(file: Path, names: Sequence[str]) -> CsvTable:
    """Read a table in UTF-8 (or UTF-16 with a byte order mark), separated by comma,
    semicolon, tab or pipe.

    names: the columns to read; of several possible delimiters, the one that yields
    these columns is used. Blank rows, and comments (#) above the header, are left out.
    Raises `RequestError` for another
    encoding, another kind of file, an open quote, and a row with more cells than the
    header.
    """
    lines = io.StringIO(_decode(file), newline="")
    start = _skip_lines(lines, names)
    place, first = lines.tell(), lines.readline()
    if match := _SEPARATOR_LINE.fullmatch(first):
        delimiter, start = match[1], start + 1
    else:
        delimiter = _find_delimiter(first, names)
        lines.seek(place)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        rows = tuple(_read_rows(file, reader, len(header), start + 1))
    except csv.Error as error:
        raise RequestError(
            f"{str(file)!r} can't be read: {error}, in line {reader.line_num + start - 1}. Expected"
            " a CSV file; a cell with a quote in it is itself quoted. Correct that line."
        ) from None
    # numpy writes a header as a comment
    header[:1] = [name.lstrip("# ") for name in header[:1]]
    return CsvTable(file, tuple(name.strip() for name in header), rows)


def _read_rows(
    file: Path, reader: Iterator[list[str]], width: int, first_number: int
) -> Iterator[Row]:
    for number, cells in enumerate(reader, start=first_number):
        if not any(cells):
            continue
        if any(cells[width:]):
            raise RequestError(
                f"Row {number} of {str(file)!r} has {len(cells)} cells, the header has {width}:"
                f" {', '.join(cells)[:200]}. Put cells that hold the delimiter in double quotes."
            )
        yield Row(number, [cell.strip() for cell in cells])


def _skip_lines(lines: io.StringIO, names: Sequence[str]) -> int:
    """Move to the header, over empty lines and comments (#); return its line number."""
    number = 1
    while True:
        place, line = lines.tell(), lines.readline()
        is_comment = line.startswith("#") and not _list_delimiters(line.lstrip("# "), names)
        if not line or (line.strip() and not is_comment):
            lines.seek(place)
            return number
        number += 1


def _list_delimiters(header: str, names: Sequence[str]) -> list[str]:
    """Return the delimiters with which a header has the columns `names`."""
    wanted = {name.lower() for name in names}

    def has_columns(delimiter: str) -> bool:
        cells = next(csv.reader([header], delimiter=delimiter), [])
        return wanted <= {cell.strip().lower() for cell in cells}

    return [each for each in _DELIMITERS if has_columns(each)]


def _find_delimiter(header: str, names: Sequence[str]) -> str:
    return max(_list_delimiters(header.lstrip("# "), names) or _DELIMITERS, key=header.count)


def _decode(file: Path) -> str:
    """Return the text of a table without a byte order mark."""
    try:
        with open_regular(file) as stream:
            content = stream.read()
    except OSError as error:
        raise RequestError(
            f"{str(file)!r} can't be read: {error.strerror or error}. Expected a CSV file."
        ) from None
    kind = next((name for magic, name in _BINARY.items() if content.startswith(magic)), None)
    if kind or file.suffix.lower() in _ENDINGS:
        raise RequestError(
            f"{str(file)!r} is {kind or f'a {file.suffix} file'}, not a CSV file. In the program"
            " that wrote it, save or export the table as 'CSV (UTF-8)', and name that file."
        )
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise RequestError(
            f"{str(file)!r} is not in UTF-8: {error.reason} in line {line}. Save the file as"
            f" 'CSV (UTF-8)', or convert it: iconv -f WINDOWS-1252 -t UTF-8 {file.name} >"
            " utf8.csv"
        ) from None
    if "\0" in text:
        raise RequestError(
            f"{str(file)!r} is not a table in UTF-8: it has bytes that are 0, as in UTF-16 without"
            " a byte order mark, UTF-32, or a file that is no text. Save the file as 'CSV (UTF-8)'."
        )
    return text
