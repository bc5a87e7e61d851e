"""VICReg against a plain float64 loop."""

import numpy as np
import pytest
import torch

from kd_app.config import RequestError
from kd_app.losses.vicreg import VicReg
from kd_app.models.outputs import Outputs
from tests.losses.samples import gradient, labels, leaf, make, normal

IMAGES, FEATURES = 6, 5


def _build(**settings: float) -> VicReg:
    term: VicReg = make("vicreg", width=4, **settings)
    outputs = Outputs(embedding=torch.zeros(2, FEATURES, dtype=torch.float64))
    term.build(outputs, outputs)
    return term.double()


def _expand(term: VicReg, embedding: np.ndarray) -> np.ndarray:
    state = {name: tensor.numpy() for name, tensor in term.state_dict().items()}
    z = embedding
    for number in (0, 1):
        z = z @ state[f"expander.{number}.weight"].T
        z = np.maximum((z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + 1e-5), 0)
    result: np.ndarray = z @ state["expander.2.weight"].T + state["expander.2.bias"]
    return result


def _compute(ours: np.ndarray, theirs: np.ndarray) -> float:
    """25 times the distance, 25 times half the hinges, and the covariances."""
    images, features = ours.shape
    value = (
        25
        * sum((ours[i, j] - theirs[i, j]) ** 2 for i in range(images) for j in range(features))
        / (images * features)
    )
    for z in (ours, theirs):
        covariance = np.cov(z, rowvar=False)
        for j in range(features):
            hinge = max(0.0, 1 - np.sqrt(covariance[j, j] + 1e-4))
            value += 25 / 2 * hinge / features
            value += sum(covariance[j, k] ** 2 for k in range(features) if k != j) / features
    return float(value)


def test_the_value_is_that_of_a_loop_over_features() -> None:
    term, ours, theirs = (
        _build(),
        normal(IMAGES, FEATURES, seed=0),
        normal(IMAGES, FEATURES, seed=1),
    )
    value = term(Outputs(embedding=ours), Outputs(embedding=theirs), labels(IMAGES))
    expected = _compute(_expand(term, ours.numpy()), _expand(term, theirs.numpy()))
    assert value.item() == pytest.approx(expected, rel=1e-10)


def test_both_views_of_a_student_get_a_gradient() -> None:
    term, views = _build(), [leaf(normal(IMAGES, FEATURES, seed=seed)) for seed in (0, 1)]
    value = term(*(Outputs(embedding=each) for each in views), labels(IMAGES))
    assert all(gradient(value, each).any() for each in views)


def test_a_constant_embedding_costs_the_whole_hinge() -> None:
    """Nothing else keeps a student without a teacher from the same for all images."""
    same = Outputs(embedding=torch.ones(IMAGES, FEATURES, dtype=torch.float64))
    value = _build()(same, same, labels(IMAGES))
    assert value.item() == pytest.approx(25 * (1 - 0.01), rel=1e-6)


def test_a_term_without_a_weight_is_refused() -> None:
    with pytest.raises(RequestError, match="All parts of the loss term vicreg have weight 0"):
        make("vicreg", invariance=0, variance=0, covariance=0).check_scope(num_classes=2)
