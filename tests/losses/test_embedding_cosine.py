"""The direction of the teacher's embedding, with and without its mean."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_app.config import RequestError
from kd_app.losses.embedding_cosine import EmbeddingCosine
from kd_app.models.outputs import Outputs
from tests.losses.samples import gradient, labels, leaf, make, normal


def _build() -> EmbeddingCosine:
    term: EmbeddingCosine = make("embedding_cosine", center=True)
    outputs = Outputs(embedding=torch.zeros(2, 5, dtype=torch.float64))
    term.build(outputs, outputs)
    return term.double()


def _call(term: EmbeddingCosine, student: Tensor, teacher: Tensor) -> Tensor:
    value: Tensor = term(
        Outputs(embedding=student), Outputs(embedding=teacher), labels(len(student))
    )
    return value


def test_the_mean_is_that_of_all_images_so_far() -> None:
    term, values = _build(), list[np.ndarray]()
    for step, size in enumerate((4, 2, 7)):
        student, teacher = normal(size, 5, seed=2 * step), 9 + normal(size, 5, seed=2 * step + 1)
        values += [*teacher.numpy()]
        expected = 0.0
        for ours, theirs in zip(student.numpy(), teacher.numpy(), strict=True):
            apart = theirs - np.mean(values, axis=0)
            expected += 1 - ours @ apart / np.linalg.norm(ours) / np.linalg.norm(apart)
        assert float(_call(term, student, teacher)) == pytest.approx(expected / size, rel=1e-10)


def test_a_large_common_mean_hides_no_difference() -> None:
    far, near = (
        _call(_build(), normal(6, 5, seed=2), shift + normal(6, 5, seed=1)) for shift in (0, 1e3)
    )
    torch.testing.assert_close(far, near)


def test_a_checkpoint_holds_the_mean() -> None:
    term, other = _build(), _build()
    _call(term, normal(6, 5, seed=0), 5 + normal(6, 5, seed=1))
    other.load_state_dict(term.state_dict())
    pair = leaf(normal(3, 5, seed=2)), 5 + normal(3, 5, seed=3)
    value = _call(other, *pair)
    assert value == _call(term, *pair)
    assert gradient(value, pair[0]).abs().sum() > 0


def test_one_image_has_no_direction_from_its_mean() -> None:
    with pytest.raises(RequestError, match="teaches nothing with batches of 1 image"):
        make("embedding_cosine", center=True).check_scope(num_classes=2, num_images=1)
    assert make("embedding_cosine").check_scope(num_classes=2, num_images=1) == ""


def test_only_the_mean_needs_the_images_of_all_ranks() -> None:
    assert make("embedding_cosine", center=True).needs_global_batch
    assert not make("embedding_cosine").needs_global_batch
