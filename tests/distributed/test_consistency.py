"""Records of ranks that must agree."""

import pytest

from kd_app.config import RunError
from kd_app.distributed.consistency import check_equal


def test_ranks_with_equal_records_pass() -> None:
    check_equal([{"rank": rank, "parameters": "a"} for rank in range(3)], "parameters")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("training", r"received different trainings: 1, 3 \(of 4\) differ from process 0"),
        ("parameters", r"ended with different parameters: 1, 3 \(of 4\) differ from process 0"),
    ],
)
def test_ranks_that_differ_are_named(key: str, message: str) -> None:
    ranks = [{"rank": rank, key: value} for rank, value in enumerate(["a", "b", "a", "c"])]
    with pytest.raises(RunError, match=message):
        check_equal(ranks, key)
