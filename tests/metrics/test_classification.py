import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, top_k_accuracy_score
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from kd_app.metrics.classification import build_model_metrics
from kd_app.metrics.scores import compute_ranks


def made(num_images: int, num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(num_classes, (num_images,), generator=generator)
    logits = torch.randn(num_images, num_classes, generator=generator)
    logits[torch.arange(num_images), target] += 1.5
    return logits, target


def figures(*batches: tuple[Tensor, Tensor]) -> dict[str, float]:
    metric = build_model_metrics(batches[0][0].shape[1])
    for logits, target in batches:
        metric.update(logits, target)
    return {name: float(value) for name, value in metric.compute().items()}


def calibration_error_in_a_loop(logits: Tensor, target: Tensor) -> float:
    p = logits.double().softmax(dim=1)
    confidence, predicted = p.max(dim=1)
    error = 0.0
    for b in range(15):
        inside = [i for i in range(len(target)) if b / 15 < confidence[i] <= (b + 1) / 15]
        error += abs(sum(float(confidence[i]) - float(predicted[i] == target[i]) for i in inside))
    return error / len(target)


def mean_recall_in_a_loop(logits: Tensor, target: Tensor) -> float:
    right = (logits.argmax(1) == target).tolist()
    each = [
        np.mean([r for r, label in zip(right, target.tolist(), strict=True) if label == k])
        for k in set(target.tolist())
    ]
    return float(np.mean(each))


@pytest.mark.parametrize("num_classes", [2, 3, 10, 1000])
def test_figures_are_those_of_sklearn_and_of_a_plain_loop(num_classes: int) -> None:
    logits, target = made(400, num_classes)
    found, p, labels = (
        figures((logits, target)),
        logits.double().softmax(1).numpy(),
        np.arange(num_classes),
    )
    assert found["top1"] == accuracy_score(target, logits.argmax(1))
    expected_top5 = top_k_accuracy_score(target, p, k=5, labels=labels) if num_classes > 5 else 1.0
    assert found["top5"] == expected_top5
    assert found["balanced_accuracy"] == pytest.approx(
        mean_recall_in_a_loop(logits, target), abs=1e-12
    )
    assert found["nll"] == pytest.approx(log_loss(target, p, labels=labels), rel=1e-5)
    assert found["ece"] == pytest.approx(calibration_error_in_a_loop(logits, target), abs=1e-6)


def test_where_torchmetrics_has_the_measure_and_no_special_case_arises_the_figures_are_its_own() -> (
    None
):
    logits, target = made(500, 10)
    found = figures((logits, target))
    assert found["top1"] == pytest.approx(
        float(MulticlassAccuracy(10, average="micro")(logits, target))
    )
    assert found["top5"] == pytest.approx(
        float(MulticlassAccuracy(10, average="micro", top_k=5)(logits, target))
    )
    assert found["balanced_accuracy"] == pytest.approx(
        float(MulticlassAccuracy(10, average="macro")(logits, target))
    )
    assert found["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(target, logits.argmax(1))
    )
    assert found["ece"] == pytest.approx(
        float(MulticlassCalibrationError(10, n_bins=15)(logits, target)), abs=1e-6
    )


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=5))
def test_how_images_fall_into_batches_empty_ones_included_changes_nothing(cuts: list[int]) -> None:
    logits, target = made(60, 7)
    edges = [0, *sorted(cuts), 60]
    found = figures(*[(logits[a:b], target[a:b]) for a, b in itertools.pairwise(edges)])
    assert found == pytest.approx(figures((logits, target)), rel=1e-5)


def test_without_any_image_every_figure_is_nan_and_nothing_is_raised() -> None:
    assert all(
        np.isnan(value)
        for value in figures((torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))).values()
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_measured_in_float32(dtype: torch.dtype) -> None:
    logits, target = made(200, 10)
    assert figures((logits.to(dtype), target)) == figures((logits.to(dtype).float(), target))


def test_a_net_of_constant_logits_is_right_on_the_first_classes_only() -> None:
    found = figures((torch.zeros(100, 10), torch.arange(10).repeat(10)))
    assert (found["top1"], found["top5"]) == (0.1, 0.5)


def test_a_net_of_nan_logits_is_never_right() -> None:
    found = figures((torch.full((20, 10), torch.nan), torch.arange(10).repeat(2)))
    assert (found["top1"], found["top5"]) == (0, 0)
    assert np.isnan(found["nll"])


def test_logits_between_0_and_1_are_not_taken_for_probabilities() -> None:
    logits, target = torch.rand(300, 10), torch.randint(10, (300,))
    assert figures((logits, target))["ece"] == pytest.approx(
        figures((logits - 100, target))["ece"], abs=1e-5
    )


def test_a_class_without_images_does_not_lower_balanced_accuracy() -> None:
    logits = torch.eye(3)[torch.tensor([0, 0, 1, 2])]
    assert figures((logits, torch.tensor([0, 0, 1, 1])))["balanced_accuracy"] == 0.75


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.lists(st.integers(-2, 2), min_size=6, max_size=6), min_size=1, max_size=8),
    label=st.integers(0, 5),
)
def test_the_rank_counts_what_a_stable_sort_puts_before_the_label(
    values: list[list[int]], label: int
) -> None:
    logits = torch.tensor(values, dtype=torch.float32)
    order = logits.sort(dim=1, descending=True, stable=True).indices
    expected = [row.tolist().index(label) for row in order]
    assert compute_ranks(logits, torch.full((len(logits),), label)).tolist() == expected


def test_a_half_finished_epoch_survives_in_a_state_dict() -> None:
    logits, target = made(100, 10)
    first = build_model_metrics(10)
    first.persistent(True)
    first.update(logits[:40], target[:40])
    second = build_model_metrics(10)
    second.persistent(True)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.update(logits[40:], target[40:])
    assert {name: float(value) for name, value in second.compute().items()} == pytest.approx(
        figures((logits, target)), rel=1e-5
    )


def test_after_a_reset_nothing_of_the_epoch_before_is_left_in_any_measure() -> None:
    metric, (logits, target) = build_model_metrics(10), made(50, 10)
    metric.update(*made(100, 10, seed=1))
    metric.compute()
    metric.reset()
    metric.update(logits, target)
    assert {name: float(value) for name, value in metric.compute().items()} == figures(
        (logits, target)
    )
