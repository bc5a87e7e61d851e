"""Cells with several labels: refused, noted, or the name of a class."""

from pathlib import Path

import pytest

from kd_app.config import RequestError
from kd_app.data.label_cells import check_single_labels


def check(*labels: str) -> list[str]:
    return check_single_labels(Path("x.csv"), labels, range(2, len(labels) + 2))


@pytest.mark.parametrize(
    ("labels", "row", "parts"),
    [
        (("cat", "dog", "cat,dog"), 4, "'cat', 'dog'"),
        (("cat", "dog", "cat | dog"), 4, "'cat', 'dog'"),
        (("cat", "dog", "bird", "dog;bird;cat"), 5, "'dog', 'bird', 'cat'"),
        (("cat", "cat dog", "dog"), 3, "'cat', 'dog'"),
        (("scab", "rust scab", "rust", "rust"), 3, "'rust', 'scab'"),
        (("cat/dog", "cat", "dog"), 2, "'cat', 'dog'"),
        (("0", "16", "16 0"), 4, "'16', '0'"),
        (("cat dog", "dog cat", "eel"), 2, "'cat', 'dog'"),
        (("['cat', 'dog']", "['eel']"), 2, "'cat', 'dog'"),
        (('["cat","dog"]', "eel"), 2, "'cat', 'dog'"),
        (("('cat', 'dog')", "eel"), 2, "'cat', 'dog'"),
        (("[0, 3]", "[1]"), 2, "'0', '3'"),
        (("cat|dog", "dog|eel", "cat|eel"), 2, "'cat', 'dog'"),
    ],
)
def test_several_labels_are_refused_with_the_row_and_the_way_forward(
    labels: tuple[str, ...], row: int, parts: str
) -> None:
    with pytest.raises(RequestError, match=rf"Row {row} of 'x.csv' has the label") as raised:
        check(*labels)
    message = str(raised.value)
    assert f"which seems to be the labels {parts}; " in message
    assert "one model for each label" in message
    assert "data.source.whole_labels=true" in message


@pytest.mark.parametrize(
    "labels",
    [
        ("hot dog", "dog", "cat"),
        ("black bear", "brown bear", "bear cub", "black cat", "lynx", "puma", "deer"),
        ("animal/cat", "animal/dog", "vehicle/car"),
        ("Gorilla gorilla", "Gorilla gorilla gorilla", "Pan paniscus", "Pan", "Pongo"),
        ("C", "C++", "R&B"),
        ("crane (bird)", "crane (machine)"),
        ("maple_tree", "maple", "tree"),
    ],
)
def test_names_of_classes_are_neither_refused_nor_noted(labels: tuple[str, ...]) -> None:
    assert check(*labels) == []


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("tench, Tinca tinca", "goldfish"), "Labels with ',' are read as names of classes"),
        (("a|b", "c"), "'a|b'. An image has one label"),
        (("haze primary", "clear primary", "haze road", "clear road"), "4 of 4 labels consist"),
        (("['cat']", "['dog']"), "Labels in brackets are read as they are"),
    ],
)
def test_unclear_labels_are_noted(labels: tuple[str, ...], message: str) -> None:
    (note,) = check(*labels)
    assert message in note
