"""The order of a teacher's classes is found, and can be used."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch

from kd_app.checks.class_order import (
    _invert,
    find_permutation,
    fit_class_order,
    try_known_orders,
    write_class_map,
)
from kd_app.checks.quick import read_limits
from kd_app.checks.teacher_input import check_teacher_input
from kd_app.metrics.record import Predictions
from tests.checks.planted import build_context

LIMITS = read_limits()
NUMBERS = tuple(sorted(str(label) for label in range(12)))


def find_better_orders(
    predicted: np.ndarray, target: np.ndarray, names: tuple[str, ...]
) -> list[str]:
    logits = np.eye(len(names), dtype=np.float32)[predicted]
    predictions = Predictions(np.arange(len(target)), target, logits)
    orders = (*fit_class_order(predictions, names), *try_known_orders(predictions, names))
    return [each.change for each in orders if each.is_better(LIMITS)]


@pytest.mark.parametrize(("images", "fitted"), [(20, True), (2, False)])
def test_names_that_are_numbers_are_tried_in_natural_order(images: int, fitted: bool) -> None:
    """Faults 17 and 18 of other toolkits. With few images no other order is fitted."""
    target = np.repeat(np.arange(12), images)
    # Class 2 has row 2 of a teacher in natural order, and number 4 in the data.
    rows = np.array([int(name) for name in NUMBERS])
    changes = find_better_orders(rows[target], target, NUMBERS)
    natural = (
        "its classes in natural order (0, 1, 2, 3, ...), where the data have 0, 1, 10, 11, ..."
    )
    assert changes == (["its classes in another order", natural] if fitted else [natural])
    assert not find_better_orders(target, target, NUMBERS)


def test_names_in_natural_order_are_tried_in_the_order_of_folders() -> None:
    names, target = tuple(map(str, range(12))), np.repeat(np.arange(12), 2)
    numbers = np.array([NUMBERS.index(name) for name in names])
    (change,) = find_better_orders(numbers[target], target, names)
    assert change.startswith("its classes in string order (0, 1, 10, 11, ...)")


def test_a_known_order_is_tested_with_images_of_train_where_validation_has_few() -> None:
    rows = np.array([int(name) for name in NUMBERS])
    few, more = (
        Predictions(
            np.arange(12 * images),
            target := np.repeat(np.arange(12), images),
            np.eye(12, dtype=np.float32)[rows[target]],
        )
        for images in (1, 5)
    )
    workspace = SimpleNamespace(classes=NUMBERS, spec=SimpleNamespace(teacher=None))
    context: Any = SimpleNamespace(
        teacher=workspace, judged=few, hits=np.ones(1), limits=LIMITS, workspace=workspace
    )
    context.predictions = few
    assert not [each for each in check_teacher_input(context) if each.severity == "refusal"]
    context.predictions = more
    (finding,) = [each for each in check_teacher_input(context) if each.severity == "refusal"]
    assert "natural order" in finding.text


def test_a_teacher_that_always_predicts_one_class_has_no_other_order() -> None:
    target = np.array([0] * 90 + [1] * 5 + [2] * 5)
    assert not find_better_orders(np.full(100, 2), target, ("a", "b", "c"))


def test_names_with_odd_digits_have_an_order() -> None:
    assert not find_better_orders(np.array([0, 1]), np.array([0, 1]), ("a", "²"))


def test_the_permutation_is_found_without_a_matrix_of_all_pairs() -> None:
    target = np.random.default_rng(0).integers(0, 50_000, 2000)
    meaning = find_permutation((target + 1) % 50_000, target)
    assert all(meaning[(label + 1) % 50_000] == label for label in target.tolist())
    assert find_permutation(np.array([3, 3, 5]), np.array([3, 4, 4])) == {3: 3, 5: 4}


def test_an_order_is_used_only_if_most_images_of_each_class_agree() -> None:
    target, predicted = np.array([0, 0, 0, 1, 1, 1, 2, 2]), np.array([1, 1, 0, 2, 2, 2, 0, 0])
    meaning = find_permutation(predicted, target)
    assert _invert(meaning, predicted, target, 3) == (1, 2, 0)
    assert _invert(meaning, predicted, target, 4) is None  # a class without images
    predicted[1] = 2
    assert _invert(find_permutation(predicted, target), predicted, target, 3) is None


def test_the_class_map_gives_the_teacher_the_order_of_the_data(tmp_path: Path) -> None:
    model = timm.create_model("resnet8", num_classes=10, in_chans=1)
    torch.save(model.state_dict(), tmp_path / "net.pth")
    teacher = (
        "teacher.name=resnet8",
        f"teacher.checkpoint={tmp_path / 'net.pth'}",
        "teacher.max_epochs=0",
    )
    context = build_context(tmp_path, *teacher)
    outputs = tuple((label + 3) % 10 for label in range(10))
    path = write_class_map(context, outputs)
    assert path is not None
    assert path.read_text(encoding="utf-8").splitlines()[:3] == ["teacher,class", "3,0", "4,1"]
    assert path == write_class_map(context, outputs)
    mapped = build_context(tmp_path, *teacher, f"teacher.classes={path}")
    before, after = context.predictions.logits, mapped.predictions.logits
    np.testing.assert_allclose(after, before[:, list(outputs)], atol=1e-5)
    assert write_class_map(mapped, outputs) is None  # its classes are mapped already
