"""Names of splits: which word of a name is one."""

import pytest

from kd_app.data.split_words import match_split, match_splits


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("training_set", "train"),
        ("test_set", "test"),
        ("seg_train", "train"),
        ("TrainImages", "train"),
        ("TRAIN-IMGS", "train"),
        ("imgs val", "validation"),
        ("valset", "validation"),
        ("dev.data", "validation"),
        ("val2017", "validation"),
        ("testimages", "test"),
        ("Testing Data", "test"),
        ("trains", None),
        ("contest", None),
        ("invalid", None),
        ("train_test", None),
        ("devices", None),
        ("hold_out_images", "test"),
        ("HeldOut", "test"),
        ("unlabeled_train", None),
        ("cat", None),
    ],
)
def test_a_split_word_is_found_inside_a_name(name: str, split: str | None) -> None:
    match = match_split(name)
    assert (match and match[0]) == split


def test_eval_is_the_test_set_unless_there_is_one() -> None:
    assert {name: match.split for name, match in match_splits(["train", "eval"]).items()} == {
        "train": "train",
        "eval": "test",
    }
    assert match_splits(["eval_set", "testing", "cat"])["eval_set"].split == "validation"
    assert match_splits(["evaluation", "eval"])["eval"].split == "test"
