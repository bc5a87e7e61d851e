"""Similarities between patches against a plain float64 loop."""

import numpy as np
import pytest
import torch

from kd_app.config import RequestError
from kd_app.models.outputs import Outputs
from tests.losses.samples import labels, make, normal


def _compare(cells: np.ndarray) -> np.ndarray:
    """Cosines of the columns of ``[C, N]``."""
    lengths = [float(np.linalg.norm(column)) for column in cells.T]
    return np.array(
        [
            [one @ other / length / lengths[j] for j, other in enumerate(cells.T)]
            for one, length in zip(cells.T, lengths, strict=True)
        ]
    )


def test_the_value_is_the_mean_square_over_images_and_pairs() -> None:
    student, teacher = normal(3, 4, 2, 3, seed=0), normal(3, 6, 2, 3, seed=1)
    expected = np.mean(
        [
            (_compare(s.reshape(4, 6)) - _compare(t.reshape(6, 6))) ** 2
            for s, t in zip(student.numpy(), teacher.numpy(), strict=True)
        ]
    )
    value = make("patch_relation")(
        Outputs(features=[student]), Outputs(features=[teacher]), labels(3)
    )
    assert float(value) == pytest.approx(float(expected), rel=1e-10)


def test_a_rotation_of_the_channels_changes_nothing() -> None:
    maps = normal(2, 4, 3, 3, seed=0)
    rotation = torch.linalg.qr(normal(7, 4, seed=1)).Q
    turned = torch.einsum("dc,bchw->bdhw", rotation, maps)
    value = make("patch_relation")(Outputs(features=[maps]), Outputs(features=[turned]), labels(2))
    assert float(value) == pytest.approx(0, abs=1e-12)


def test_maps_of_one_cell_are_refused() -> None:
    one = Outputs(features=[normal(2, 4, 1, 1, seed=0)])
    with pytest.raises(RequestError, match="similarities of patches"):
        make("patch_relation").build(one, one)
