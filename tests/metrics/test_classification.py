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


def make_logits(num_images: int, num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(num_classes, (num_images,), generator=generator)
    logits = torch.randn(num_images, num_classes, generator=generator)
    logits[torch.arange(num_images), target] += 1.5
    return logits, target


def compute_metrics(*batches: tuple[Tensor, Tensor]) -> dict[str, float]:
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
def test_metrics_equal_sklearns_and_a_plain_loop(num_classes: int) -> None:
    logits, target = make_logits(400, num_classes)
    result, p, labels = (
        compute_metrics((logits, target)),
        logits.double().softmax(1).numpy(),
        np.arange(num_classes),
    )
    assert result["top1"] == accuracy_score(target, logits.argmax(1))
    expected_top5 = top_k_accuracy_score(target, p, k=5, labels=labels) if num_classes > 5 else 1.0
    assert result["top5"] == expected_top5
    assert result["balanced_accuracy"] == pytest.approx(
        mean_recall_in_a_loop(logits, target), abs=1e-12
    )
    assert result["nll"] == pytest.approx(log_loss(target, p, labels=labels), rel=1e-5)
    assert result["ece"] == pytest.approx(calibration_error_in_a_loop(logits, target), abs=1e-6)


def test_metrics_equal_torchmetrics_where_available() -> None:
    logits, target = make_logits(500, 10)
    result = compute_metrics((logits, target))
    assert result["top1"] == pytest.approx(
        float(MulticlassAccuracy(10, average="micro")(logits, target))
    )
    assert result["top5"] == pytest.approx(
        float(MulticlassAccuracy(10, average="micro", top_k=5)(logits, target))
    )
    assert result["balanced_accuracy"] == pytest.approx(
        float(MulticlassAccuracy(10, average="macro")(logits, target))
    )
    assert result["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(target, logits.argmax(1))
    )
    assert result["ece"] == pytest.approx(
        float(MulticlassCalibrationError(10, n_bins=15)(logits, target)), abs=1e-6
    )


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, 60), max_size=5))
def test_batch_sizes_do_not_change_metrics(cuts: list[int]) -> None:
    logits, target = make_logits(60, 7)
    edges = [0, *sorted(cuts), 60]
    result = compute_metrics(*[(logits[a:b], target[a:b]) for a, b in itertools.pairwise(edges)])
    assert result == pytest.approx(compute_metrics((logits, target)), rel=1e-5)


def test_every_metric_without_images_is_nan() -> None:
    assert all(
        np.isnan(value)
        for value in compute_metrics(
            (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        ).values()
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_widened_to_float32(dtype: torch.dtype) -> None:
    logits, target = make_logits(200, 10)
    assert compute_metrics((logits.to(dtype), target)) == compute_metrics(
        (logits.to(dtype).float(), target)
    )


def test_constant_logits_are_right_on_the_first_classes_only() -> None:
    result = compute_metrics((torch.zeros(100, 10), torch.arange(10).repeat(10)))
    assert (result["top1"], result["top5"]) == (0.1, 0.5)


def test_nan_logits_are_never_right_in_training_metrics() -> None:
    result = compute_metrics((torch.full((20, 10), torch.nan), torch.arange(10).repeat(2)))
    assert (result["top1"], result["top5"]) == (0, 0)
    assert np.isnan(result["nll"])


def test_logits_between_0_and_1_are_not_treated_as_probabilities() -> None:
    logits, target = torch.rand(300, 10), torch.randint(10, (300,))
    assert compute_metrics((logits, target))["ece"] == pytest.approx(
        compute_metrics((logits - 100, target))["ece"], abs=1e-5
    )


def test_a_class_without_images_does_not_lower_balanced_accuracy() -> None:
    logits = torch.eye(3)[torch.tensor([0, 0, 1, 2])]
    assert compute_metrics((logits, torch.tensor([0, 0, 1, 1])))["balanced_accuracy"] == 0.75


@settings(max_examples=50)
@given(
    values=st.lists(st.lists(st.integers(-2, 2), min_size=6, max_size=6), min_size=1, max_size=8),
    label=st.integers(0, 5),
)
def test_the_rank_counts_the_classes_that_a_stable_sort_puts_before_the_label(
    values: list[list[int]], label: int
) -> None:
    logits = torch.tensor(values, dtype=torch.float32)
    order = logits.sort(dim=1, descending=True, stable=True).indices
    expected = [row.tolist().index(label) for row in order]
    assert compute_ranks(logits, torch.full((len(logits),), label)).tolist() == expected


def test_a_half_finished_epoch_survives_in_a_state_dict() -> None:
    logits, target = make_logits(100, 10)
    first = build_model_metrics(10)
    first.persistent(True)
    first.update(logits[:40], target[:40])
    second = build_model_metrics(10)
    second.persistent(True)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.update(logits[40:], target[40:])
    assert {name: float(value) for name, value in second.compute().items()} == pytest.approx(
        compute_metrics((logits, target)), rel=1e-5
    )


def test_a_reset_clears_every_metric() -> None:
    metric, (logits, target) = build_model_metrics(10), make_logits(50, 10)
    metric.update(*make_logits(100, 10, seed=1))
    metric.compute()
    metric.reset()
    metric.update(logits, target)
    assert {name: float(value) for name, value in metric.compute().items()} == compute_metrics(
        (logits, target)
    )
