"""Records of models, built from logits."""

from collections.abc import Mapping

import numpy as np

from kd_app.metrics.record import Predictions


def to_records(logits: Mapping[str, np.ndarray], target: np.ndarray) -> dict[str, Predictions]:
    """Build a record of each model; the index is the order of the images."""
    return {name: Predictions(np.arange(len(target)), target, z) for name, z in logits.items()}
