"""Cells of a table that hold several labels."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from kd_app.config import RequestError
from kd_app.config.errors import quote_some
from kd_app.data.spelling import note_spellings

_DELIMITERS: Final[Mapping[str, re.Pattern[str]]] = {
    **{sign: re.compile(re.escape(sign)) for sign in ",;|/+&"},
    " ": re.compile(r"\s+"),
}
_RARE = ",;|"
"""Delimiters that names of classes seldom have."""
_LIST = re.compile(r"\[.*\]|\{.*\}|\(\s*['\"].*\)", re.DOTALL)
_MISSING = frozenset(["nan", "n/a", "#n/a", "na", "null", "?", "-", "unlabeled", "unlabelled"])
_DECIMAL = re.compile(r"-?\d*\.\d+")
_QUOTES = " \t'\""
_SHOWN = 3

Parts = Mapping[str, Sequence[str]]
"""Label -> its parts, of which there are at least two."""


def check_single_labels(file: Path, labels: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """Return notes about labels that may be several labels.

    labels: the label of each row of `file`. numbers: the number of each row. Raises
    `RequestError` for labels that are surely several: lists, other labels side by side
    ('cat,dog' beside 'cat' and 'dog'), the same parts in another order, or parts that
    all recur in other labels with a delimiter that is rare in names.
    """
    counts = Counter(labels)
    notes = []
    for sign, pattern in _DELIMITERS.items():
        parts = {label: part for label in counts if len(part := _split_label(label, pattern)) > 1}
        unclear = _select_recurring(parts, counts)
        several = _select_several(parts, counts) or (unclear if sign in _RARE else {})
        if several:
            number = next(n for label, n in zip(labels, numbers, strict=True) if label in several)
            label = labels[numbers.index(number)]
            rows = sum(counts[each] for each in several)
            raise RequestError(
                f"Row {number} of {str(file)!r} has the label {label!r}, which seems to be the"
                f" labels {quote_some(several[label])}; {rows:,} of {len(labels):,} rows have"
                f" several. An image has one label here: each combination would be a class of its"
                " own. Expected: one label in each row. Keep the main label of an image and leave"
                " out images without one; or train one model for each label, with the values yes"
                f" and no. If {label!r} is the name of one class, set"
                " data.source.whole_labels=true."
            )
        if sign in _RARE and parts:
            notes.append(
                f"Labels with {sign!r} are read as names of classes, one each:"
                f" {quote_some([*parts], _SHOWN)}. An image has one label."
            )
        elif unclear:
            notes.append(
                f"{len(unclear)} of {len(counts)} labels consist of words that other labels have,"
                f" too: {quote_some([*unclear], _SHOWN)}. Each is one class; an image has one"
                " label."
            )
    lists = [label for label in counts if _LIST.fullmatch(label)]
    if lists:
        notes.append(f"Labels in brackets are read as they are: {quote_some(lists, _SHOWN)}.")
    return notes


def note_labels(labels: Iterable[str]) -> list[str]:
    """Return notes about labels that differ only in spelling, and about labels that
    usually mean that there is none.
    """
    names = sorted(set(labels))
    missing = [name for name in names if name.lower() in _MISSING]
    notes = note_spellings(names)
    decimals = [name for name in names if _DECIMAL.fullmatch(name) and float(name) % 1]
    if 2 * len(decimals) > len(names):
        notes.append(
            f"Labels with decimals are read as names of classes: {quote_some(decimals, _SHOWN)}. An"
            " amount can't be predicted here: divide its range into a few classes."
        )
    return notes + [
        f"The label {name!r} is read as a class. If it means that the label is missing, remove"
        " these rows."
        for name in missing
    ]


def _split_label(label: str, pattern: re.Pattern[str]) -> list[str]:
    """Return the parts of a label, without the signs of a list."""
    inner = label[1:-1] if _LIST.fullmatch(label) else label
    return [part for each in pattern.split(inner) if (part := each.strip(_QUOTES))]


def _select_several(parts: Parts, counts: Mapping[str, int]) -> Parts:
    """Return the labels that are surely several labels."""
    orders = Counter(tuple(sorted(each)) for each in parts.values())
    return {
        label: each
        for label, each in parts.items()
        if (_LIST.fullmatch(label) and "," in label)
        or orders[tuple(sorted(each))] > 1
        or all(part in counts for part in each)
    }


def _select_recurring(parts: Parts, counts: Mapping[str, int]) -> Parts:
    """Return the labels whose parts all recur in other labels, if they are at least
    half of all labels; else nothing.
    """
    uses = Counter(part for each in parts.values() for part in set(each))
    recurring = {
        label: each for label, each in parts.items() if all(uses[part] > 1 for part in each)
    }
    return recurring if 2 * len(recurring) >= len(counts) and len(recurring) > 1 else {}
