"""Mean and variance of the embeddings of several teachers."""

import numpy as np
import pytest

from kd_app.config import RequestError
from kd_app.run.member_moments import compute_moments


def test_the_variance_is_the_mean_squared_distance_from_the_mean() -> None:
    embeddings = np.random.default_rng(0).normal(5, 2, (50, 3)).astype(np.float32)
    moments = compute_moments(embeddings, "a")
    exact = embeddings.astype(np.float64)
    np.testing.assert_allclose(moments.mean, exact.mean(axis=0))
    np.testing.assert_allclose(moments.variance, exact.var(axis=0).sum())


def test_a_member_that_tells_no_images_apart_is_refused() -> None:
    with pytest.raises(RequestError, match="member b gives all 4 training images the same"):
        compute_moments(np.full((4, 3), 7.1, np.float32), "b")
