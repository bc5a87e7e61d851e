"""The split of each image in a table: what the cells of a column mean."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, Literal

from kd_app.config import RequestError, suggest_closest
from kd_app.config.errors import list_some
from kd_app.config.table import CsvTable
from kd_app.data.source import SPLITS
from kd_app.data.split_words import SPLIT_WORDS, match_split, match_splits

SplitName = Literal["train", "val", "validation", "test"]
"""What `data.source.splits` sets for a value."""

_FLAGS: Final[Mapping[str, bool]] = {
    **dict.fromkeys(("1", "true", "t", "yes", "y"), True),
    **dict.fromkeys(("0", "false", "f", "no", "n"), False),
}


class SplitColumn:
    """The column of a table that holds the split of each image.

    A cell is the name of a split, yes or no in a column whose name is that of a split
    ('is_valid': yes is validation, no is train; 'is_train': no is test), or a value of
    `splits`, in which case all other values are train.

    Raises `RequestError` for a row of another value, and for values of `splits` that no
    row has.
    """

    def __init__(
        self, table: CsvTable, place: int, splits: Mapping[str | int | float | bool, SplitName]
    ) -> None:
        self.place = place
        self.name = table.columns[place]
        cells = [cell for cell in table.list_cells(place) if cell]
        self._rows = Counter(map(normalize_cell, cells))
        words = list(self._rows)
        chosen = {normalize_cell(str(key)): SPLIT_WORDS[value] for key, value in splits.items()}
        unused = [value for value in chosen if value not in words]
        if unused:
            raise RequestError(
                f"data.source.splits has the value {unused[0]!r}, which no row has in the column"
                f" {self.name!r} of {str(table.file)!r}. It has: {list_some(words)}."
            )
        self.meanings = {**find_meanings(self.name, cells), **chosen}
        if chosen:
            self.meanings = {**dict.fromkeys(words, "train"), **self.meanings}
        for row in table.rows:
            cell = row.cells[place] if place < len(row.cells) else ""
            if cell and normalize_cell(cell) not in self.meanings:
                unknown = [word for word in words if word not in self.meanings]
                raise RequestError(self._describe_unknown(table, row.number, cell, unknown))

    def read(self, cells: Sequence[str]) -> str:
        """Return the split of a row, '' for an empty cell."""
        cell = cells[self.place] if self.place < len(cells) else ""
        return self.meanings[normalize_cell(cell)] if cell else ""

    def describe(self) -> list[str]:
        """Return a note, unless all cells are plain names of splits."""
        if all(SPLIT_WORDS.get(word) == split for word, split in self.meanings.items()):
            return []
        parts = []
        for split in SPLITS:
            words = [word for word, meaning in self.meanings.items() if meaning == split]
            if words:
                count = sum(self._rows[word] for word in words)
                parts.append(f"{split} is {list_some(words)} ({count:,} rows)")
        return [f"The column {self.name!r} is read as the split: {'; '.join(parts)}."]

    def _describe_unknown(
        self, table: CsvTable, number: int, cell: str, words: Collection[str]
    ) -> str:
        near = suggest_closest(cell.lower(), SPLIT_WORDS)
        if normalize_cell(cell).isdecimal():
            near = "A number does not tell whether a fold is for training or for testing. "
        return (
            f"Row {number} of {str(table.file)!r} has the split {cell!r}. {near}Expected:"
            f" {', '.join(SPLIT_WORDS)}, or an empty cell. {suggest_splits(words)} sets the meaning"
            " of other values."
        )


def find_meanings(name: str, cells: Iterable[str]) -> dict[str, str]:
    """Return normalized cell -> split for the cells of a column that have a meaning.

    name: the name of the column. cells: its cells, without empty ones.
    """
    words = {normalize_cell(cell): cell for cell in cells}
    match = match_split(name)
    if match and words and words.keys() <= _FLAGS.keys():
        other = "test" if match.split == "train" else "train"
        return {word: match.split if _FLAGS[word] else other for word in words}
    matches = match_splits(words.values())
    return {word: matches[cell].split for word, cell in words.items() if cell in matches}


def normalize_cell(cell: str) -> str:
    """Return a cell in lower case; whole numbers without '.0'."""
    return re.sub(r"(?<=\d)\.0+$", "", cell.lower())


def suggest_splits(words: Collection[str]) -> str:
    """Return the setting that makes the first of `words` the test set."""
    first = sorted(words, key=lambda word: (len(word), word))[0]
    return f"'data.source.splits={{{first}: test}}' (all other values are train)"
