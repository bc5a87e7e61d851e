"""Tests of the division into three splits: shares, classes, groups, reproducibility."""

import csv
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_app.config import RequestError
from kd_app.data.source import SPLITS, Listing
from kd_app.data.splits import ImageSplit, split, write_split


def listing(
    labels: Sequence[int],
    ready: Sequence[str] = (),
    group: Sequence[str] = (),
    files: Sequence[str] = (),
) -> Listing:
    count = len(labels)
    return Listing(
        classes=tuple("abcdefghij"[: max(labels) + 1])
        if max(labels) < 10
        else tuple(map(str, range(max(labels) + 1))),
        files=tuple(files) or tuple(f"image{number}.png" for number in range(count)),
        target=np.array(labels, dtype=np.int64),
        split=tuple(ready) or ("",) * count,
        group=tuple(group) or ("",) * count,
        fingerprint="",
    )


def divide(
    images: Listing, seed: int = 0, validation: float = 0.1, test: float = 0.2
) -> ImageSplit:
    return split(images, seed=seed, validation=validation, test=test)


def per_class(images: Listing, names: Sequence[str]) -> dict[int, Counter[str]]:
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for label, name in zip(images.target.tolist(), names, strict=True):
        counts[label][name] += 1
    return counts


sizes = st.lists(st.integers(3, 60), min_size=2, max_size=5)
shares = st.floats(0.01, 0.6)


@given(sizes=sizes, seed=st.integers(0, 10), validation=shares, test=shares)
def test_every_image_is_in_one_set_and_every_class_in_its_share_of_each(
    sizes: list[int], seed: int, validation: float, test: float
) -> None:
    images = listing([label for label, size in enumerate(sizes) for _ in range(size)])
    names, notes = divide(images, seed, validation, test)
    assert set(names) == set(SPLITS)
    assert len(names) == len(images.files)
    for label, counts in per_class(images, names).items():
        left = sizes[label] - counts["test"]
        assert abs(counts["test"] - test * sizes[label]) < 1
        assert abs(counts["validation"] - validation * left) < 1
        assert counts["train"] >= 1
    assert not notes


@given(sizes=sizes, seed=st.integers(0, 5))
def test_the_same_seed_gives_the_same_split_in_whatever_order_the_images_come(
    sizes: list[int], seed: int
) -> None:
    images = listing([label for label, size in enumerate(sizes) for _ in range(size)])
    names = divide(images, seed).names
    assert divide(images, seed).names == names
    order = np.random.default_rng(0).permutation(len(names))
    shuffled = listing(
        [int(images.target[number]) for number in order],
        files=[images.files[number] for number in order],
    )
    assert divide(shuffled, seed).names == tuple(names[number] for number in order)


def test_another_seed_gives_another_split() -> None:
    images = listing([0, 1] * 50)
    assert len({divide(images, seed).names for seed in range(20)}) == 20


def test_which_images_are_drawn_is_uniform_over_the_seeds() -> None:
    images = listing([0, 1] * 10)
    frequency = sum(
        np.array([name == "test" for name in divide(images, seed).names]) for seed in range(400)
    )
    assert np.abs(frequency / 400 - 0.2).max() < 0.08  # four standard deviations of a share of 400


@given(sizes=sizes, seed=st.integers(0, 5), added=st.integers(1, 3))
def test_images_added_to_a_class_change_few_others_of_it_and_none_of_other_classes(
    sizes: list[int], seed: int, added: int
) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    before = divide(listing(labels), seed).names
    after = divide(listing(labels + [0] * added), seed).names
    changed = [label for label, old, new in zip(labels, before, after, strict=False) if old != new]
    assert set(changed) <= {0}
    assert len(changed) <= 4 * added


@pytest.mark.parametrize(
    ("classes", "images", "test", "counts"),
    [
        (400, 3, 0.2, {"train": 864, "validation": 96, "test": 240}),
        (400, 2, 0.2, {"train": 576, "validation": 64, "test": 160}),
        (400, 3, 0.9, {"train": 720, "validation": 80, "test": 400}),
        (1000, 14, 0.1, {"train": 11340, "validation": 1260, "test": 1400}),
        (10, 4, 0.2, {"train": 20, "validation": 10, "test": 10}),
    ],
)
def test_many_classes_of_few_images_keep_the_shares(
    classes: int, images: int, test: float, counts: dict[str, int]
) -> None:
    several = listing([number for number in range(classes) for _ in range(images)])
    names, _ = divide(several, test=test)
    assert Counter(names) == counts
    assert all(each["train"] for each in per_class(several, names).values())


def test_shares_that_differ_much_from_those_set_are_noted() -> None:
    images = listing([0, 1] * 60, group=[f"patient{number // 30}" for number in range(120)])
    note, *_ = divide(images, validation=0.05, test=0.05).notes
    assert "The test set has 30 of 120 images (25 %) instead of 5 % (data.split.test=0.05)" in note


def test_classes_missing_in_predefined_splits_are_noted() -> None:
    ready = ["train", "train", "validation", "test", "test"]
    (note,) = divide(listing([0, 1, 0, 0, 1], ready)).notes
    assert note.startswith("1 class(es) have no image in validation: 'b'.")


def test_predefined_splits_are_kept_and_the_rest_is_train() -> None:
    ready = ["train", "validation", "test", ""] * 10
    names = divide(listing([0, 0, 0, 0, 1, 1, 1, 1] * 5, ready)).names
    assert names == tuple(name or "train" for name in ready)


@pytest.mark.parametrize("rest", ["", "train"])
def test_validation_is_drawn_from_train_if_only_test_is_predefined(rest: str) -> None:
    images = listing([0, 1] * 50, ["test"] * 20 + [rest] * 80)
    names, notes = divide(images)
    assert names[:20] == ("test",) * 20
    assert Counter(names) == {"test": 20, "validation": 8, "train": 72}
    assert not notes


def test_test_is_drawn_from_unassigned_images_or_else_from_train() -> None:
    some = listing([0, 1] * 50, ["train"] * 40 + ["validation"] * 20 + [""] * 40)
    names, notes = divide(some)
    assert names[:60] == some.split[:60]
    assert Counter(names[60:]) == {"test": 8, "train": 32}
    assert not notes
    none = listing([0, 1] * 50, ["train"] * 80 + ["validation"] * 20)
    names, notes = divide(none)
    assert Counter(names) == {"train": 64, "test": 16, "validation": 20}
    assert notes == ("The predefined splits have no test set; it was drawn from train.",)


group_sizes = st.lists(st.lists(st.integers(1, 9), min_size=4, max_size=12), min_size=2, max_size=4)


@given(sizes=group_sizes, seed=st.integers(0, 5), validation=shares, test=shares)
def test_groups_are_not_divided_and_every_class_is_in_train(
    sizes: list[list[int]], seed: int, validation: float, test: float
) -> None:
    rows = [
        (label, f"g{number}")
        for label, groups in enumerate(sizes)
        for number, size in enumerate(groups)
        for _ in range(size)
    ]
    images = listing(
        [label for label, _ in rows], group=[group for _, group in rows]
    )  # a group has images of several classes
    names = divide(images, seed, validation, test).names
    assert len(set(zip(names, images.group, strict=True))) == len(set(images.group))
    assert set(names) == set(SPLITS)
    assert all(counts["train"] for counts in per_class(images, names).values())


def test_groups_of_one_class_come_close_to_the_share() -> None:
    labels = [number % 2 for number in range(100) for _ in range(1 + number % 4)]
    group = [f"person{number}" for number in range(100) for _ in range(1 + number % 4)]
    images = listing(labels, group=group)
    for counts in per_class(images, divide(images).names).values():
        assert abs(counts["test"] - 0.2 * counts.total()) <= 4  # the largest group


def test_a_few_large_groups_still_give_three_sets() -> None:
    images = listing([0, 1] * 60, group=[f"patient{number // 30}" for number in range(120)])
    names = divide(images, validation=0.05, test=0.05).names
    assert Counter(names) == {"train": 60, "validation": 30, "test": 30}


def test_images_without_a_group_are_each_their_own() -> None:
    images = listing([0, 1] * 50, group=["g"] * 10 + [""] * 90)
    names = divide(images).names
    assert len(set(names[:10])) == 1
    assert set(names[10:]) == set(SPLITS)


def test_a_group_follows_the_predefined_split_of_some_of_its_images() -> None:
    images = listing([0, 1] * 20, ["test"] * 10 + [""] * 30, ["g"] * 2 + [""] * 30 + ["g"] * 8)
    assert divide(images).names[32:] == ("test",) * 8


def test_predefined_splits_that_divide_a_group_are_refused() -> None:
    images = listing(
        [0, 1] * 4, ["train"] * 4 + ["test"] * 4, ["", "", "", "person 7", "person 7", "", "", ""]
    )
    with pytest.raises(
        RequestError,
        match=r"'person 7' is in two splits: 'image3.png' is in train and 'image4.png' in test",
    ):
        divide(images)


def test_a_class_of_one_image_is_in_train_with_a_note() -> None:
    names, notes = divide(listing([0] * 20 + [1] * 20 + [2]))
    assert names[-1] == "train"
    assert len(notes) == 2
    assert all(
        "'c'" in note and part in note
        for note, part in zip(notes, ("validation", "test"), strict=True)
    )


def test_a_class_of_two_images_is_in_train_and_test() -> None:
    names, notes = divide(listing([0] * 20 + [1] * 2))
    assert sorted(names[-2:]) == ["test", "train"]
    assert len(notes) == 1
    assert "no image in validation" in notes[0]


def test_a_class_missing_in_predefined_train_is_refused() -> None:
    with pytest.raises(RequestError, match="'b' is in train"):
        divide(listing([0] * 10 + [1] * 10, [""] * 10 + ["test"] * 10))


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2], [0, 0, 1, 1]])
def test_too_few_images_are_refused_with_what_is_needed(labels: list[int]) -> None:
    with pytest.raises(RequestError, match=r"set would be empty.*at least 3 images"):
        divide(listing(labels))


def test_too_few_groups_are_refused_too() -> None:
    with pytest.raises(RequestError, match="3 groups"):
        divide(listing([0, 1] * 50, group=["x", "x", "y", "y"] * 25))


@pytest.mark.parametrize(
    ("validation", "test"), [(0, 0.1), (0.1, 1), (-0.1, 0.1), (float("nan"), 0.1), (0.1, 2)]
)
def test_a_share_outside_of_0_to_1_is_refused(validation: float, test: float) -> None:
    with pytest.raises(RequestError, match="more than 0 and less than 1"):
        divide(listing([0, 1] * 10), validation=validation, test=test)


def test_the_split_is_written_as_a_table(tmp_path: Path) -> None:
    files = ["a,b.png", 'it\'s "it".png', "line\nbreak.png", "ö.png", "\udcff.png", "f.png"]
    images = listing([0, 1] * 3, group=["", "g", "", "g", "", ""], files=files)
    names = divide(images, validation=0.5, test=0.3).names
    write_split(tmp_path / "split.csv", images, names)
    with (tmp_path / "split.csv").open(encoding="utf-8", newline="") as text:
        rows = list(csv.DictReader(text))
    assert list(rows[0]) == ["index", "file", "label", "split", "group", "digest"]
    assert [row["index"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert [row["file"] for row in rows] == [*files[:4], "\\udcff.png", "f.png"]
    assert [row["label"] for row in rows] == ["a", "b"] * 3
    assert tuple(row["split"] for row in rows) == names
    assert [row["group"] for row in rows] == list(images.group)


def divide_with_copies(images: Listing, copies: Sequence[int]) -> ImageSplit:
    return split(images, seed=0, validation=0.1, test=0.2, copies=np.array(copies))


@given(sizes=sizes)
def test_different_images_are_divided_as_without_a_search_for_copies(sizes: list[int]) -> None:
    images = listing([label for label, size in enumerate(sizes) for _ in range(size)])
    assert divide_with_copies(images, range(len(images.files))) == divide(images)


@given(st.lists(st.integers(0, 9), min_size=30, max_size=60))
def test_copies_are_never_in_two_splits(copies: list[int]) -> None:
    first = [copies.index(number) for number in copies]
    images = listing([0, 1] * 30 + [0] * len(copies))
    names = divide_with_copies(images, [*range(60), *(60 + number for number in first)]).names
    assert all(names[60 + number] == names[60 + n] for n, number in enumerate(first))


def test_copies_join_groups() -> None:
    images = listing([0, 1] * 20, group=["x", "x", "y", "y"] + [""] * 36)
    copies = list(range(40))
    copies[5], copies[4] = 2, 1
    for seed in range(20):
        names = split(images, seed=seed, validation=0.1, test=0.2, copies=np.array(copies)).names
        assert names[0] == names[1] == names[4]
        assert names[2] == names[3] == names[5]


def test_an_image_without_a_split_follows_its_copy_with_one() -> None:
    images = listing([0, 1] * 20, ["test"] * 4 + ["train"] * 32 + [""] * 4)
    names = divide_with_copies(images, [*range(36), 0, 0, 5, 39]).names
    assert names[36:38] == ("test", "test")
    assert names[38] == names[5]


def test_too_few_different_images_are_refused_with_their_number() -> None:
    with pytest.raises(RequestError, match=r"10 image\(s\) in 2 group\(s\) \(copies, "):
        divide_with_copies(listing([0, 1] * 5), [0, 1] * 5)
