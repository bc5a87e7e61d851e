"""Which images kd-evaluate measures by default."""

import pytest

from kd_app.jobs.evaluate import select_split


@pytest.mark.parametrize(
    ("split", "data", "expected"),
    [
        ("auto", None, "test"),
        ("auto", {"name": "folder"}, "all"),
        ("validation", None, "validation"),
        ("train", {"name": "folder"}, "train"),
    ],
)
def test_auto_is_test_of_the_runs_own_data_and_all_of_other_data(
    split: str, data: dict[str, str] | None, expected: str
) -> None:
    assert select_split({"split": split, "data": data}) == expected
