"""The relation to a queue of the teacher's embeddings, against a plain float64 loop."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_app.losses.seed_queue import SeedQueue
from kd_app.models.outputs import Outputs
from tests.losses.samples import gradient, labels, leaf, make, normal

TEMPERATURES = {"teacher_temperature": 0.1, "student_temperature": 0.3}


def _build(size: int, width: int = 5) -> SeedQueue:
    term: SeedQueue = make("seed_queue", size=size, **TEMPERATURES)
    outputs = Outputs(embedding=torch.zeros(2, width, dtype=torch.float64))
    term.build(outputs, outputs)
    return term.double()


def _call(term: SeedQueue, student: Tensor, teacher: Tensor) -> Tensor:
    value: Tensor = term(
        Outputs(embedding=student), Outputs(embedding=teacher), labels(len(student))
    )
    return value


def _compute(student: np.ndarray, teacher: np.ndarray, queue: list[np.ndarray]) -> float:
    """The cross-entropy of one batch, image by image."""
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        s, t = ours / np.linalg.norm(ours), theirs / np.linalg.norm(theirs)
        keys = [each / np.linalg.norm(each) for each in (*queue, *teacher)]
        p_t = np.exp([t @ key / 0.1 for key in keys])
        p_s = np.exp([s @ key / 0.3 for key in keys])
        total -= float((p_t / p_t.sum() * np.log(p_s / p_s.sum())).sum())
    return total / len(student)


def test_the_value_is_that_of_a_loop_over_images_and_queue() -> None:
    term, queue = _build(size=6), list[np.ndarray]()
    for seed in range(4):
        student, teacher = normal(4, 5, seed=2 * seed), normal(4, 5, seed=2 * seed + 1)
        expected = _compute(student.numpy(), teacher.numpy(), queue)
        assert float(_call(term, student, teacher)) == pytest.approx(expected, rel=1e-10)
        queue = [*queue, *teacher.numpy()][-6:]


def test_a_batch_larger_than_the_queue_leaves_its_last_images() -> None:
    term, teacher = _build(size=3), normal(8, 5, seed=1)
    _call(term, normal(8, 5, seed=0), teacher)
    rows = torch.nn.functional.normalize(teacher[-3:], dim=1)
    assert sorted(term.queue.tolist()) == sorted(rows.tolist())


def test_the_gradient_is_finite_although_the_queue_changes_before_it() -> None:
    term = _build(size=4)
    _call(term, normal(4, 5, seed=0), normal(4, 5, seed=1))
    student = leaf(normal(4, 5, seed=2))
    value = _call(term, student, normal(4, 5, seed=3))
    assert gradient(value, student).isfinite().all()
    assert gradient(value, student).abs().sum() > 0


def test_a_checkpoint_holds_the_queue() -> None:
    term, other = _build(size=4), _build(size=4)
    _call(term, normal(6, 5, seed=0), normal(6, 5, seed=1))
    other.load_state_dict(term.state_dict())
    pair = normal(3, 5, seed=2), normal(3, 5, seed=3)
    assert _call(other, *pair) == _call(term, *pair)
