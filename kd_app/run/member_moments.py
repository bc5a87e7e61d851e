"""Mean and variance of the embeddings of several teachers, measured once on the
training images.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from kd_app.config import RequestError
from kd_app.metrics.blocks import slice_rows
from kd_app.metrics.record import Predictions
from kd_app.models.embedding_ensemble import EmbeddingEnsemble, Moments
from kd_app.run.model import RunModel
from kd_app.run_files import MOMENTS
from kd_app.stages import Stage, write_atomically

_CONSTANT: Final = 1e-10
"""Share of the squared length below which a variance is rounding."""


def measure_moments(
    teacher: EmbeddingEnsemble,
    cache_predictions: Callable[[RunModel, str], Path],
    find_or_build: Callable[[str, dict[str, Any], dict[str, str], Callable[[Path], None]], Stage],
) -> None:
    """Measure the embeddings of each member on the training images, and give the
    teacher the file.

    Raises `RequestError` for a member that gives all images the same embedding.
    """
    loaded = teacher.create_members(teacher.image_stats)
    folders = {
        name: cache_predictions(RunModel(f"teacher-{name}", member, loaded[name]), "train")
        for name, member in teacher.members.items()
    }

    def build(folder: Path) -> None:
        moments = {
            name: compute_moments(Predictions.load(each).logits, name)
            for name, each in folders.items()
        }
        text = json.dumps({name: each.to_json() for name, each in moments.items()})
        write_atomically(folder / MOMENTS, text)

    # the name of a stage's folder is the hash of what decides its content
    inputs = {name: each.name for name, each in folders.items()}
    stage = find_or_build("moments-teacher", {}, inputs, build)
    teacher.moments = stage.path / MOMENTS


def compute_moments(embeddings: Float[np.ndarray, "images width"], name: str) -> Moments:
    """Return the mean and the mean squared distance from it, in float64.

    name: of the member, for the message. Raises `RequestError` for equal embeddings.
    """
    total = np.zeros(embeddings.shape[1])
    for rows in slice_rows(embeddings):
        total += embeddings[rows].sum(axis=0, dtype=np.float64)
    mean = total / len(embeddings)
    variance = sum(
        float(np.square(embeddings[rows] - mean).sum()) for rows in slice_rows(embeddings)
    ) / len(embeddings)
    if not variance > _CONSTANT * float(mean @ mean):
        raise RequestError(
            f"The teacher's member {name} gives all {len(embeddings):,} training images the same"
            " embedding, so it can't be brought to the scale of the others. Expected: weights that"
            f" tell these images apart. Check teacher.members.{name}, or leave it out."
        )
    return Moments(mean.tolist(), variance)
