import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    brier_score_loss,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    recall_score,
)
from torch import Tensor

from kd_app.metrics.per_class import Confusion, class_flips, class_measures


def made(
    seed: int, num_images: int, num_classes: int, *, absent: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher logits, with ties, and labels of all classes but the last
    `absent`.
    """
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(num_classes - absent, (num_images,), generator=generator)
    logits = torch.randint(-3, 4, (2, num_images, num_classes), generator=generator).float()
    logits[:, torch.arange(num_images), target] += 1
    return logits[0], logits[1], target


def found_in(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    metric = class_measures(logits.shape[1])
    metric.update(logits, target)
    return dict(metric.compute())


def classwise_error_in_a_loop(p: np.ndarray, target: np.ndarray) -> float:
    errors = []
    for k in range(p.shape[1]):
        gaps = []
        for b in range(15):
            low = -1.0 if b == 0 else b / 15  # the first bin holds 0
            inside = (p[:, k] > low) & (p[:, k] <= (b + 1) / 15)
            gaps.append(abs((p[inside, k] - (target[inside] == k)).sum()) / len(p))
        errors.append(sum(gaps))
    return float(np.mean(errors))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_images=st.integers(1, 60),
    num_classes=st.integers(2, 7),
    absent=st.integers(0, 1),
)
def test_figures_are_those_of_sklearn_and_of_a_plain_loop_whatever_is_tied_or_absent(
    seed: int, num_images: int, num_classes: int, absent: int
) -> None:
    logits, _, target = made(seed, num_images, num_classes, absent=absent)
    found, y, predicted, classes = (
        found_in(logits, target),
        target.numpy(),
        logits.argmax(1).numpy(),
        np.arange(num_classes),
    )
    there = np.unique(y)
    recall, f1, support = (
        column
        for column in precision_recall_fscore_support(
            y, predicted, labels=classes, zero_division=0
        )[1:]
    )
    np.testing.assert_array_equal(found["support"].numpy(), support)
    np.testing.assert_allclose(found["class_accuracy"].numpy()[there], recall[there])
    np.testing.assert_allclose(found["class_f1"].numpy()[there], f1[there])
    assert np.isnan(np.delete(found["class_accuracy"].numpy(), there)).all()
    assert np.isnan(np.delete(found["class_f1"].numpy(), there)).all()
    assert float(found["f1"]) == pytest.approx(
        f1_score(y, predicted, labels=there, average="macro", zero_division=0)
    )
    p = logits.double().softmax(1).numpy()
    assert float(found["brier"]) == pytest.approx(
        ((p - np.eye(num_classes)[y]) ** 2).sum(1).mean(), rel=1e-5, abs=1e-9
    )
    assert float(found["classwise_ece"]) == pytest.approx(
        classwise_error_in_a_loop(logits.softmax(1).numpy(), y), abs=1e-5
    )


def test_brier_of_many_classes_is_that_of_sklearn_where_it_scales_by_nothing() -> None:
    logits, _, target = made(0, 300, 5)
    expected = brier_score_loss(
        target.numpy(), logits.double().softmax(1).numpy(), labels=range(5), scale_by_half=False
    )
    assert float(found_in(logits, target)["brier"]) == pytest.approx(expected, rel=1e-6)


def test_a_sure_model_that_is_right_has_no_error_and_one_that_is_wrong_the_largest() -> None:
    right = found_in(torch.eye(3) * 200, torch.arange(3))
    assert [float(right[name]) for name in ("brier", "classwise_ece", "f1")] == [0, 0, 1]
    wrong = found_in(torch.eye(2) * 200, torch.tensor([1, 0]))
    assert [float(wrong[name]) for name in ("brier", "classwise_ece", "f1")] == [2, 1, 0]


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 50), max_size=5))
def test_how_images_fall_into_batches_empty_ones_included_changes_nothing(cuts: list[int]) -> None:
    student, teacher, target = made(1, 50, 6)
    metric, flips, confusion = class_measures(6), class_flips(6), Confusion(6)
    for a, b in itertools.pairwise([0, *sorted(cuts), 50]):
        metric.update(student[a:b], target[a:b])
        flips.update(student[a:b], teacher[a:b], target[a:b])
        confusion.update(student[a:b].argmax(1), target[a:b])
    for name, value in found_in(student, target).items():
        torch.testing.assert_close(metric.compute()[name], value)
    whole = class_flips(6)
    whole.update(student, teacher, target)
    torch.testing.assert_close(flips.compute(), whole.compute())
    assert confusion.compute().sum() == 50


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), num_images=st.integers(1, 40))
def test_the_confusion_is_sklearns_and_its_diagonal_the_recall(seed: int, num_images: int) -> None:
    logits, _, target = made(seed, num_images, 5, absent=1)
    metric = Confusion(5)
    metric.update(logits.argmax(1), target)
    np.testing.assert_array_equal(
        metric.compute().numpy(), confusion_matrix(target, logits.argmax(1), labels=range(5))
    )
    there = target.unique()
    recall = recall_score(target, logits.argmax(1), labels=there, average=None, zero_division=0)
    np.testing.assert_allclose(
        (metric.compute().diagonal() / metric.compute().sum(1)).numpy()[there], recall, rtol=1e-6
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), num_images=st.integers(1, 40))
def test_flips_of_a_class_are_those_of_a_plain_loop_and_the_difference_of_its_recalls(
    seed: int, num_images: int
) -> None:
    student, teacher, target = made(seed, num_images, 4, absent=1)
    metric = class_flips(4)
    metric.update(student, teacher, target)
    found = {name: value.tolist() for name, value in metric.compute().items()}
    rows = list(
        zip(student.argmax(1).tolist(), teacher.argmax(1).tolist(), target.tolist(), strict=True)
    )
    for k in range(4):
        mine = [(s == k, t == k) for s, t, label in rows if label == k]
        if not mine:
            assert np.isnan([found["negative_flips"][k], found["positive_flips"][k]]).all()
            continue
        assert found["negative_flips"][k] == sum(t and not s for s, t in mine) / len(mine)
        assert found["positive_flips"][k] == sum(s and not t for s, t in mine) / len(mine)
    gap = found_in(student, target)["class_accuracy"] - found_in(teacher, target)["class_accuracy"]
    np.testing.assert_allclose(
        np.subtract(found["positive_flips"], found["negative_flips"]), gap.numpy(), atol=1e-12
    )


def test_half_precision_is_widened_and_nan_logits_are_never_right() -> None:
    logits, _, target = made(2, 80, 5)
    torch.testing.assert_close(
        found_in(logits.bfloat16(), target), found_in(logits.bfloat16().float(), target)
    )
    lost = found_in(torch.full((10, 5), torch.nan), torch.arange(5).repeat(2))
    assert lost["class_accuracy"].tolist() == [0] * 5
    assert lost["brier"].isnan()
