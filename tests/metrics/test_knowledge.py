"""What a teacher says beyond the label, beside scipy and plain loops."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import entropy

from kd_app.metrics.knowledge import TEMPERATURES, SoftLabels, soft_labels, strongest


def made(num_images: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = rng.integers(num_classes, size=num_images)
    logits = rng.standard_normal((num_images, num_classes)).astype(np.float32)
    logits[np.arange(num_images), target] += 3
    return logits, target


@pytest.mark.parametrize("num_classes", [2, 10, 300])
def test_entropy_is_that_of_scipy_in_nats_and_as_a_share_of_a_uniform_answer(
    num_classes: int,
) -> None:
    logits, target = made(200, num_classes)
    found = soft_labels(logits, target, taught=[3.0])
    assert [each["temperature"] for each in found["entropy"]] == [1, 2, 3, 4, 8, 16]
    for each in found["entropy"]:
        p = softmax(logits.astype(np.float64) / each["temperature"], axis=1)
        assert each["mean_nats"] == pytest.approx(entropy(p, axis=1).mean(), rel=1e-5)
        assert each["of_uniform"] == pytest.approx(
            entropy(p, base=num_classes, axis=1).mean(), rel=1e-5
        )
        assert each["beyond_top"] == pytest.approx(1 - p.max(axis=1).mean(), rel=1e-4)


def test_a_row_of_the_matrix_is_the_mean_answer_to_the_images_of_its_class() -> None:
    logits, target = made(200, 5)
    found = soft_labels(logits, target, taught=[4.0, 1.0])
    assert [each["temperature"] for each in found["alike"]] == [1, 4]
    for each in found["alike"]:
        p = softmax(logits.astype(np.float64) / each["temperature"], axis=1)
        assert each["matrix"] is not None
        for label, row in enumerate(each["matrix"]):
            assert row == pytest.approx(p[target == label].mean(axis=0), abs=1e-5)


def test_the_strongest_pairs_are_found_in_both_directions_together() -> None:
    matrix = np.array([[0.7, 0.1, 0.2], [0.3, 0.6, 0.1], [0.0, 0.4, 0.6]])
    assert [(pair["first"], pair["second"]) for pair in strongest(matrix, 3)] == [
        (1, 2),
        (0, 1),
        (0, 2),
    ]
    assert [pair["probability"] for pair in strongest(matrix, 2)] == pytest.approx([0.25, 0.2])


def test_a_class_without_images_is_known_by_what_the_others_images_say_of_it() -> None:
    matrix = np.array([[0.5, 0.4, 0.1], [np.nan] * 3, [0.2, 0.1, 0.7]])
    found = strongest(matrix, 3)
    assert [(pair["first"], pair["second"]) for pair in found] == [(0, 1), (0, 2), (1, 2)]
    assert [pair["probability"] for pair in found] == pytest.approx([0.4, 0.15, 0.1])


def test_of_many_classes_the_pairs_are_kept_and_the_matrix_is_not() -> None:
    (plain,) = soft_labels(*made(500, 101), taught=[])["alike"]
    assert plain["matrix"] is None
    assert len(plain["similar"]) == 20


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=4))
def test_how_images_fall_into_batches_empty_ones_included_changes_nothing(cuts: list[int]) -> None:
    logits, target = (torch.from_numpy(each) for each in made(60, 7))
    edges = [0, *sorted(cuts), 60]
    metrics = [SoftLabels(7, temperatures=TEMPERATURES, alike=(1.0, 4.0)) for _ in range(2)]
    metrics[0].update(logits, target)
    for start, end in itertools.pairwise(edges):
        metrics[1].update(logits[start:end], target[start:end])
    whole, parts = (metric.compute() for metric in metrics)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, equal_nan=True, rtol=1e-4, atol=1e-6)


def test_the_sums_of_two_ranks_are_those_of_one() -> None:
    logits, target = (torch.from_numpy(each) for each in made(61, 7))
    first, second, both = (SoftLabels(7, temperatures=(1.0, 4.0), alike=(1.0,)) for _ in range(3))
    first.update(logits[::2], target[::2])
    second.update(logits[1::2], target[1::2])
    both.update(logits, target)
    first.merge_state(second)
    for name, value in both.compute().items():
        torch.testing.assert_close(
            first.compute()[name], value, equal_nan=True, rtol=1e-5, atol=1e-6
        )


def test_without_images_nothing_is_known() -> None:
    metric = SoftLabels(3, temperatures=(1.0,), alike=(1.0,))
    metric.update(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert all(bool(value.isnan().all()) for value in metric.compute().values())


def test_after_a_reset_nothing_of_what_was_seen_is_left() -> None:
    logits, target = (torch.from_numpy(each) for each in made(20, 4))
    metric = SoftLabels(4, temperatures=(1.0,), alike=(1.0,))
    metric.update(logits, target)
    before = metric.compute()
    metric.reset()
    metric.update(logits, target)
    assert all(torch.equal(metric.compute()[name], value) for name, value in before.items())
