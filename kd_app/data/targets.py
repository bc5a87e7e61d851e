"""The form of targets: class numbers ``[B]``, or shares of classes ``[B, K]``."""

import torch
from torch import Tensor

from kd_app.config import RequestError

_TOLERANCE = 1e-3
_HALF_TOLERANCE = 1e-2
_FORMS = (
    "Expected: class numbers [B] from 0, or [B, K] with the share of each of K classes, at least 0"
    " and 1 in sum."
)
_UNLABELED = " For images without a label, return kd_app's Batch with labeled=."


def normalize_target(target: Tensor) -> Tensor:
    """Return whole numbers as class numbers ``[B]`` int64, or, with a column for
    each class, as shares ``[B, K]``; other targets as they are.
    """
    if target.is_floating_point():
        is_whole = target.dim() == 1 and torch.equal(target, target.trunc())
        return target.long() if is_whole and torch.isfinite(target).all() else target
    if target.dim() == 2 and target.shape[1] > 1:
        return target.float()
    return target.reshape(-1).long() if target.dim() == 2 else target.long()


def check_target(
    target: Tensor, labeled: Tensor | None, num_classes: int | None, *, where: str
) -> Tensor:
    """Return targets in the form of `normalize_target`.

    labeled: the rows that have a label; None: all. num_classes: None if unknown. where:
    which images these are, for messages. Raises `RequestError` if a label is no class,
    or if shares are not those of one label.
    """
    target = normalize_target(target)
    problem = _find_problem(target if labeled is None else target[labeled], num_classes)
    if problem:
        raise RequestError(f"A target of the {where} images {problem}")
    return target


def _find_problem(target: Tensor, num_classes: int | None) -> str:
    """Describe what is wrong and how to fix it; the subject is a target."""
    if target.dim() == 1 and not target.is_floating_point():
        return _find_wrong_number(target, num_classes)
    if target.dim() == 1 or (target.dim() == 2 and target.shape[1] == 1):
        return (
            f"is {float(target.flatten()[0]):g}, which is no class number. {_FORMS} For two classes"
            " return 0 or 1 as an integer, of shape [B]. Regression is not supported."
        )
    if target.dim() != 2:
        return f"has the shape {tuple(target.shape[1:])}. {_FORMS} Return one label an image."
    return _find_wrong_shares(target, num_classes)


def _find_wrong_number(target: Tensor, num_classes: int | None) -> str:
    if not len(target):
        return ""
    low, high = int(target.min()), int(target.max())
    if low < 0:
        return f"is {low}, which is no class. {_FORMS}{_UNLABELED}"
    if num_classes is not None and high >= num_classes:
        return (
            f"is {high}, but there are {num_classes} classes, numbered from 0 to"
            f" {num_classes - 1}. {_FORMS} Correct the labels, or list all classes in the data"
            " module's `classes`."
        )
    return ""


def _find_wrong_shares(target: Tensor, num_classes: int | None) -> str:
    if num_classes is not None and target.shape[1] != num_classes:
        return f"has {target.shape[1]} shares, but there are {num_classes} classes. {_FORMS}"
    if not len(target):
        return ""
    if not torch.isfinite(target).all():
        return f"is not finite. {_FORMS}{_UNLABELED}"
    if (low := float(target.min())) < 0:
        return f"has the share {low:.4g}. {_FORMS}"
    is_half = target.dtype in (torch.float16, torch.bfloat16)
    sums = target.float().sum(dim=1)
    wrong = sums[(sums - 1).abs() > (_HALF_TOLERANCE if is_half else _TOLERANCE)]
    if len(wrong):
        return (
            f"has shares of {float(wrong[0]):.4g} in sum. {_FORMS} Several labels an image are not"
            " supported: train one run for each label (has it, has it not), make a class of each"
            " combination, or divide each row by its sum if the labels share the image."
        )
    return ""
