"""Class names: matched to the data's classes, and the orders in which tools number
them.
"""

import pytest
from timm.utils import natural_key

from kd_app.models.class_names import (
    ClassMatch,
    ModelClasses,
    describe_classes,
    list_candidate_orders,
    match_classes,
    name_imagenet_classes,
)

IMAGENET = name_imagenet_classes(1000)


def match(classes: str, names: str) -> ClassMatch:
    mine, theirs = (tuple(text.split("|")) for text in (classes, names))
    return match_classes(mine, ModelClasses(len(theirs), theirs))


def test_classes_in_another_order_are_reordered_and_that_is_noted() -> None:
    """Fault F3: the folders are in string order, timm's classes in natural order."""
    names = tuple(map(str, range(12)))
    result = match_classes(sorted(names), ModelClasses(12, names))
    assert result.rows == (0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9)
    assert "in another order (its class 2 is '2', the data's is '10')" in result.note


@pytest.mark.parametrize(
    ("classes", "names", "rows"),
    [
        ("cat|dog", "cat|dog", None),
        ("dog|cat", "cat|dog", (1, 0)),
        ("dog|eel", "ant|cat|dog|eel", (2, 3)),
        ("Great White|dog", "great_white|DOG", None),
        ("DOG|great-white", "great_white|dog|eel", (1, 0)),
        ("00|01|10", "0|1|10", None),
        ("cafe\u0301|x", "caf\u00e9|x", None),
        ("n01443537|n01440764", "tench, Tinca tinca|goldfish, Carassius auratus", (1, 0)),
        ("Goldfish|tench", "n01440764|n01443537", (1, 0)),
    ],
)
def test_classes_are_matched_by_name(
    classes: str, names: str, rows: tuple[int, ...] | None
) -> None:
    result = match(classes, names)
    assert (result.fits, result.rows) == (True, rows)
    assert (result.note == "") == (classes == names)


@pytest.mark.parametrize(
    ("classes", "names", "detail"),
    [
        ("cat|dog", "ant|bee", "Its classes are 'ant', 'bee' ...; 2 of the data's are none"),
        ("cat|dog|eel", "cat|dog", "1 of the data's are none of them ('eel')"),
        ("cat|Cat|dog", "CAT|dog|eel", "differ from each other only in spelling"),
        ("cat|dog", "CAT|Cat|dog", "1 of the data's are none of them ('cat')"),
    ],
)
def test_classes_without_one_output_each_do_not_fit(classes: str, names: str, detail: str) -> None:
    result = match(classes, names)
    assert not result.fits
    assert detail in result.detail
    assert result.reason == f"has {len(names.split('|'))} classes"


def test_without_names_the_number_is_compared() -> None:
    assert match_classes(("a", "b"), ModelClasses(2)).fits
    assert match_classes(("a", "b"), ModelClasses()).fits
    assert not match_classes(("a", "b"), ModelClasses(3)).fits


def test_an_ambiguous_word_of_imagenet_fits_no_class() -> None:
    assert match_classes(("goldfish", "ant"), ModelClasses(1000, IMAGENET)).rows == (1, 310)
    assert not match_classes(("goldfish", "crane"), ModelClasses(1000, IMAGENET)).fits


def test_imagenet_classes_are_described_by_words_that_differ() -> None:
    words = describe_classes(IMAGENET)
    assert words[0] == "tench, Tinca tinca"
    assert words[134] == "crane (n02012849)"
    assert len(set(words)) == 1000
    assert match_classes(IMAGENET[::-1], ModelClasses(1000, words)).rows == tuple(range(1000))[::-1]


@pytest.mark.parametrize(
    ("classes", "orders"),
    [
        (("0", "1", "10", "2"), {"natural": (0, 1, 3, 2)}),
        (("0", "1", "2", "10"), {"string": (0, 1, 3, 2)}),
        (("A", "B", "c"), {}),
        (("Bee", "ant"), {"natural": (1, 0)}),
        (("ant", "Bee"), {"string": (1, 0)}),
        (("c", "b", "a"), {"natural": (2, 1, 0)}),
    ],
)
def test_the_orders_of_other_tools(
    classes: tuple[str, ...], orders: dict[str, tuple[int, ...]]
) -> None:
    assert list_candidate_orders(classes) == orders
    if "natural" in orders:
        natural = sorted(classes, key=natural_key)
        assert [natural[row] for row in orders["natural"]] == list(classes)
