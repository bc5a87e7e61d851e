"""Columns of a table that nothing reads: what they may have meant."""

import re
from collections.abc import Mapping

from kd_app.config import RequestError
from kd_app.config.errors import list_some
from kd_app.data.layout import SPLIT_WORDS
from kd_app.data.table import ImageTable, Role

_SPLIT_NAMES = frozenset(
    [
        *("split", "set", "subset", "fold", "partition", "phase", "usage", "holdout", "dev"),
        *("train", "training", "val", "valid", "validation", "test", "testing"),
    ]
)
_GROUP_NAMES = frozenset(
    [
        *("group", "patient", "subject", "participant", "person", "individual", "animal", "family"),
        *("case", "study", "exam", "series", "session", "visit", "video", "clip", "scene", "burst"),
        *("sequence", "slide", "specimen", "donor", "site", "camera", "location"),
    ]
)
"""Words in the name of a column that tells which images belong together."""
_SHOWN = 8


def check_unread(
    table: ImageTable, columns: Mapping[Role, str | None], places: Mapping[Role, int]
) -> list[str]:
    """Return notes about the columns that are not read.

    columns: role -> name, None for a role that the user has ruled out. places: role ->
    position of the columns that are read. Raises `RequestError` if no split is read
    and a column holds nothing but the names of splits: its test images would be trained
    on.
    """
    unread = {
        name: place
        for place, name in enumerate(table.columns)
        if name and place not in places.values()
    }
    if not unread:
        return []
    may_be_split = [] if "split" in places or columns["split"] is None else list(unread)
    for name in may_be_split:
        words = _list_values(table, unread[name])
        if (
            words
            and words <= SPLIT_WORDS.keys()
            and {SPLIT_WORDS[each] for each in words} - {"train"}
        ):
            raise RequestError(
                f"The column {name!r} of {str(table.file)!r} holds the names of splits"
                f" ({', '.join(sorted(words))}), but is not read as the split: images for testing"
                f" would be trained on. Set data.source.columns.split='{name}' to use these splits,"
                " or data.source.columns.split=null to draw new ones."
            )
    notes = [f"Columns of {table.file.name} that are not read: {list_some(list(unread), _SHOWN)}."]
    splits = [name for name in may_be_split if _has_word(name, _SPLIT_NAMES)]
    if splits:
        notes.append(
            f"The splits are drawn at random, without the column {splits[0]!r}. If it is the split,"
            " write train, val or test for each image, and set"
            f" data.source.columns.split='{splits[0]}'."
        )
    may_be_group = [] if "group" in places or columns["group"] is None else list(unread)
    groups = [
        name
        for name in may_be_group
        if _has_word(name, _GROUP_NAMES)
        and len(_list_values(table, unread[name])) < len(table.rows)
    ]
    if groups:
        notes.append(
            f"Images with the same value of {groups[0]!r} may be in train and in test. To keep them"
            f" in one split, set data.source.columns.group='{groups[0]}'."
        )
    return notes


def _list_values(table: ImageTable, place: int) -> set[str]:
    cells = (row.cells[place] for row in table.rows if place < len(row.cells))
    return {cell.lower() for cell in cells if cell}


def _has_word(name: str, words: frozenset[str]) -> bool:
    """Return whether a name like 'patient_id', 'PatientID' or 'is test' has a word."""
    parts = re.split(r"[\W_\d]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name))
    return bool({part.lower() for part in parts} & words)
