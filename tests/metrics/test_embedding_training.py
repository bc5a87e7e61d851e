"""Agreement of student and teacher on validation images during a training."""

import pytest
import torch
from torch import Tensor

from kd_app.metrics.embedding_training import EmbeddingAgreement

ANGLES = torch.tensor([0.0, 0.1, 1.0, 1.1])
"""Of four images: the nearest of each is its neighbor in this list."""


def _measure(student: Tensor, teacher: Tensor, target: list[int]) -> dict[str, float]:
    metric, index = EmbeddingAgreement(k=1), torch.arange(len(student))
    for rows in (index[1::2], index[::2]):  # in any order
        metric.update(student[rows], teacher[rows], rows, torch.tensor(target)[rows])
    return {name: float(value) for name, value in metric.compute().items()}


def _turn(angles: Tensor) -> Tensor:
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def test_the_student_that_equals_the_teacher_agrees_in_everything() -> None:
    values = _measure(_turn(ANGLES), _turn(ANGLES), [0, 0, 1, 1])
    assert values["overlap"] == values["purity"] == 1
    assert values["distance"] == pytest.approx(0, abs=1e-6)


def test_two_embeddings_of_few_images_do_not_share_all_neighbors_by_chance() -> None:
    metric, index = EmbeddingAgreement(k=10), torch.arange(5)
    teacher, student = (torch.randn(5, 4, generator=torch.manual_seed(seed)) for seed in (0, 1))
    metric.update(student, teacher, index, -torch.ones(5, dtype=torch.long))
    assert metric.compute()["overlap"] < 1


def test_a_common_mean_does_not_count_as_agreement() -> None:
    student, teacher = (9 + normal for normal in (_turn(ANGLES), -_turn(ANGLES)))
    assert _measure(student, teacher, [0] * 4)["distance"] == pytest.approx(2, abs=1e-4)


def test_labels_judge_only_among_the_images_that_have_one() -> None:
    # 0 and 2 are nearest to each other once 1 and 3 are left out
    assert _measure(_turn(ANGLES), _turn(ANGLES), [0, -1, 1, -1])["purity"] == 0
    for target in ([-1] * 4, [0] * 4, [0, -1, 0, -1]):
        assert "purity" not in _measure(_turn(ANGLES), _turn(ANGLES), target)
