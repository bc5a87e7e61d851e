import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from torch import Tensor

from kd_app.metrics.classification import build_model_metrics
from kd_app.metrics.pair import build_pair_metrics


def make_images(
    seed: int, num_images: int = 40, num_classes: int = 5
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, num_images, num_classes, generator=generator) * 3
    return student, teacher, torch.randint(num_classes, (num_images,), generator=generator)


def compare(student: Tensor, teacher: Tensor, target: Tensor) -> dict[str, float]:
    metric = build_pair_metrics()
    metric.update(student, teacher, target)
    return {name: float(value) for name, value in metric.compute().items()}


def test_metrics_equal_a_plain_loop_over_the_images() -> None:
    student, teacher, target = make_images(0, 300)
    s, t, y = student.argmax(1).tolist(), teacher.argmax(1).tolist(), target.tolist()
    result = compare(student, teacher, target)
    assert result["agreement"] == sum(a == b for a, b in zip(s, t, strict=True)) / 300
    assert (
        result["negative_flips"]
        == sum(b == c and a != c for a, b, c in zip(s, t, y, strict=True)) / 300
    )
    assert (
        result["positive_flips"]
        == sum(a == c and b != c for a, b, c in zip(s, t, y, strict=True)) / 300
    )
    divergences = entropy(
        teacher.double().softmax(1).numpy(), student.double().softmax(1).numpy(), axis=1
    )
    assert result["kl_to_teacher"] == pytest.approx(np.mean(divergences), rel=1e-5)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31))
def test_swapping_the_models_keeps_the_agreement_and_swaps_the_flips(seed: int) -> None:
    student, teacher, target = make_images(seed)
    one, other = compare(student, teacher, target), compare(teacher, student, target)
    assert one["agreement"] == other["agreement"]
    assert (one["negative_flips"], one["positive_flips"]) == (
        other["positive_flips"],
        other["negative_flips"],
    )


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31))
def test_flips_explain_the_difference_of_the_accuracies(seed: int) -> None:
    student, teacher, target = make_images(seed)
    top1 = []
    for logits in (student, teacher):
        metric = build_model_metrics(5)
        metric.update(logits, target)
        top1.append(float(metric["top1"].compute()))
    result = compare(student, teacher, target)
    assert result["positive_flips"] - result["negative_flips"] == pytest.approx(top1[0] - top1[1])


def test_a_model_agrees_with_itself_on_everything() -> None:
    student, _, target = make_images(1)
    assert compare(student, student, target) == {
        "agreement": 1,
        "kl_to_teacher": pytest.approx(0, abs=1e-6),
        "negative_flips": 0,
        "positive_flips": 0,
    }


def test_extreme_logits_give_a_finite_divergence() -> None:
    student, teacher = torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]])
    assert compare(student, teacher, torch.tensor([0]))["kl_to_teacher"] == pytest.approx(2e4)


def test_an_empty_batch_changes_nothing_and_half_precision_is_widened() -> None:
    student, teacher, target = make_images(2)
    metric = build_pair_metrics()
    metric.update(student[:0], teacher[:0], target[:0])
    metric.update(student.half(), teacher.bfloat16(), target)
    result = {name: float(value) for name, value in metric.compute().items()}
    assert result == compare(student.half().float(), teacher.bfloat16().float(), target)
