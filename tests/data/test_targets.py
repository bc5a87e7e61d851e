"""Targets are class numbers or shares of one label; anything else is refused."""

import pytest
import torch
from torch import Tensor

from kd_app.config import RequestError
from kd_app.data.targets import check_target

THREE = 3


def check(target: Tensor, labeled: Tensor | None = None, classes: int | None = THREE) -> Tensor:
    return check_target(target, labeled, classes, where="train")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (torch.tensor([0, 2, 1]), [0, 2, 1]),
        (torch.tensor([0, 2], dtype=torch.int32), [0, 2]),
        (torch.tensor([0, 2], dtype=torch.uint8), [0, 2]),
        (torch.tensor([True, False]), [1, 0]),
        (torch.tensor([1.0, 0.0]), [1, 0]),
        (torch.tensor([[0], [2]]), [0, 2]),
        (torch.tensor([], dtype=torch.int64), []),
        (torch.tensor([[0, 0, 1], [1, 0, 0]]), [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
        (torch.tensor([[0.5, 0.25, 0.25]]), [[0.5, 0.25, 0.25]]),
        (torch.tensor([[0.5, 0.25, 0.2504]]), [[0.5, 0.25, 0.2504]]),
    ],
)
def test_labels_are_class_numbers_or_shares(target: Tensor, expected: list[object]) -> None:
    result = check(target)
    torch.testing.assert_close(result, torch.tensor(expected).to(result.dtype))
    assert result.dtype in (torch.int64, torch.float32)


def test_shares_in_half_precision_are_accepted() -> None:
    shares = torch.full((1, 3), 1 / 3).bfloat16()
    assert check(shares) is shares


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.tensor([[1.0, 1.0, 0.0]]), "has shares of 2 in sum.*Several labels an image"),
        (torch.tensor([[1, 1, 0]]), "has shares of 2 in sum.*Several labels an image"),
        (torch.tensor([[0.0, 0.0, 0.0]]), "has shares of 0 in sum"),
        (torch.tensor([[0.6, 0.6, -0.2]]), "has the share -0.2"),
        (torch.tensor([[0.5, 0.5, torch.nan]]), "is not finite"),
        (torch.tensor([[torch.inf, 0.5, 0.5]]), "is not finite"),
        (torch.tensor([[0.5, 0.5]]), "has 2 shares, but there are 3 classes"),
        (torch.tensor([0, 3]), "is 3, but there are 3 classes, numbered from 0 to 2"),
        (torch.tensor([0, -1]), "is -1, which is no class.*labeled="),
        (torch.tensor([0, -100]), "is -100, which is no class"),
        (torch.tensor([0.5, 1.0]), "is 0.5, which is no class number.*Regression"),
        (torch.tensor([torch.nan, 1.0]), "is nan, which is no class number"),
        (torch.tensor([[0.0], [1.0]]), "is 0, which is no class number"),
        (torch.zeros(2, 4, 4, dtype=torch.int64), r"has the shape \(4, 4\)"),
    ],
)
def test_other_targets_are_refused(target: Tensor, message: str) -> None:
    with pytest.raises(RequestError, match=f"^A target of the train images {message}"):
        check(target)


def test_rows_without_a_label_are_not_checked_if_they_are_marked() -> None:
    labeled = torch.tensor([True, False])
    assert check(torch.tensor([2, -1]), labeled).tolist() == [2, -1]
    check(torch.tensor([[1.0, 0.0, 0.0], [torch.nan] * 3]), labeled)


def test_the_number_of_classes_may_be_unknown() -> None:
    assert check(torch.tensor([99]), classes=None).tolist() == [99]
