"""Columns of a table that nothing reads: what they may have meant."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from kd_app.config import RequestError
from kd_app.config.errors import list_some
from kd_app.config.table import CsvTable
from kd_app.data.split_column import find_meanings, normalize_cell, suggest_splits
from kd_app.data.split_words import SPLIT_WORDS, match_split

Role = Literal["path", "label", "split", "group"]
"""What a column is read as."""

_SPLIT_NAMES = frozenset(
    [
        *("split", "set", "subset", "fold", "folds", "kfold", "partition", "phase", "usage"),
    ]
)
_FOLD_NAMES = frozenset(["fold", "folds", "kfold", "split", "partition"])
_MAX_FOLDS = 20
_GROUP_NAMES = frozenset(
    [
        *("group", "patient", "subject", "participant", "person", "individual", "animal", "family"),
        *("case", "study", "exam", "series", "session", "visit", "video", "clip", "scene", "burst"),
        *("sequence", "slide", "specimen", "donor", "site", "camera", "location"),
        *("ptid", "pid", "mrn"),
    ]
)
"""Words in the name of a column that tells which images belong together."""
_SHOWN = 8


def check_unread(
    table: CsvTable, columns: Mapping[Role, str | None], places: Mapping[Role, int]
) -> list[str]:
    """Return notes about the columns that are not read.

    columns: role -> name, None for a role that the user has ruled out. places: role ->
    position of the columns that are read. Raises `RequestError` if no split is read
    and a column states one: images for testing would be trained on, or results would be
    compared with those of another split.
    """
    unread = {
        name: place
        for place, name in enumerate(table.columns)
        if name and place not in places.values()
    }
    if not unread:
        return []
    notes = [f"Columns of {table.file.name} that are not read: {list_some(list(unread), _SHOWN)}."]
    if "split" not in places and columns["split"] is not None:
        for name, place in unread.items():
            _check_split(table, name, [cell for cell in table.list_cells(place) if cell])
        splits = [
            name for name in unread if _may_be_split(name) and _list_words(table, unread[name])
        ]
        if splits:
            notes.append(
                f"The splits are drawn at random, without the column {splits[0]!r}. If it is the"
                f" split, set data.source.columns.split='{splits[0]}' and"
                f" {suggest_splits(_list_words(table, unread[splits[0]]))}."
            )
    may_be_group = [] if "group" in places or columns["group"] is None else list(unread)
    groups = [
        name
        for name in may_be_group
        if _has_word(name, _GROUP_NAMES) and len(_list_words(table, unread[name])) < len(table.rows)
    ]
    if groups:
        notes.append(
            f"Images with the same value of {groups[0]!r} may be in train and in test. To keep them"
            f" in one split, set data.source.columns.group='{groups[0]}'."
        )
    return notes


def _check_split(table: CsvTable, name: str, cells: Sequence[str]) -> None:
    """Raise `RequestError` if the cells of a column state a split; none is empty."""
    words = sorted(set(map(normalize_cell, cells)))
    place = f"The column {name!r} of {str(table.file)!r}"
    ways = (
        f"Set data.source.columns.split='{name}' to use {{}},"
        " or data.source.columns.split=null to draw new splits."
    )
    meanings = find_meanings(name, cells)
    is_split = len(meanings) == len(words) and bool({*meanings.values()} - {"train"})
    if set(words) <= SPLIT_WORDS.keys() and is_split:
        raise RequestError(
            f"{place} holds the names of splits ({', '.join(words)}), but is not read as the split:"
            f" images for testing would be trained on. {ways.format('these splits')}"
        )
    if is_split and len({*meanings.values()}) > 1 and _may_be_split(name):
        use = ", ".join(f"{word}: {split}" for word, split in meanings.items())
        raise RequestError(
            f"{place} seems to be the split, but is not read: images for testing would be trained"
            f" on. {ways.format(f'it ({use})')}"
        )
    if (
        _has_word(name, _FOLD_NAMES)
        and 2 <= len(words) <= _MAX_FOLDS
        and all(word.isdecimal() for word in words)
    ):
        raise RequestError(
            f"{place} seems to hold the numbers of folds ({', '.join(words)}), but is not read: new"
            " splits would be drawn, whose results can't be compared with those of the folds."
            f" Set data.source.columns.split='{name}' and {suggest_splits(words)}, or"
            " data.source.columns.split=null to draw new splits."
        )


def _list_words(table: CsvTable, place: int) -> list[str]:
    """Return the distinct values of a column, sorted."""
    return sorted({normalize_cell(cell) for cell in table.list_cells(place) if cell})


def _may_be_split(name: str) -> bool:
    return match_split(name) is not None or _has_word(name, _SPLIT_NAMES)


def _has_word(name: str, words: frozenset[str]) -> bool:
    """Return whether a name like 'patient_id', 'PatientID' or 'is test' has a word."""
    parts = re.split(r"[\W_\d]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name))
    return bool({part.lower() for part in parts} & words)
