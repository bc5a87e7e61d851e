"""Confidence of a model, computed from its logits; needs numpy only."""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kd_app.metrics.blocks import slice_rows

Floats = NDArray[np.float64]


def compute_log_probabilities(logits: NDArray[np.floating], temperature: float) -> Floats:
    """``log softmax(logits / temperature)`` over the last axis, in float64."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled = scaled - scaled.max(axis=-1, keepdims=True)
    return np.asarray(scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True)))


def _compute_maximum(logits: NDArray[np.floating], temperature: float) -> Floats:
    return np.asarray(np.exp(compute_log_probabilities(logits, temperature)).max(axis=-1))


def _compute_margin(logits: NDArray[np.floating], temperature: float) -> Floats:
    best = np.partition(np.exp(compute_log_probabilities(logits, temperature)), -2, axis=-1)
    return np.asarray(best[..., -1] - best[..., -2])


def _compute_entropy(logits: NDArray[np.floating], temperature: float) -> Floats:
    logs = compute_log_probabilities(logits, temperature)
    return np.asarray((np.exp(logs) * logs).sum(axis=-1))


def _compute_energy(logits: NDArray[np.floating], temperature: float) -> Floats:
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    most = scaled.max(axis=-1)
    return np.asarray(temperature * (most + np.log(np.exp(scaled - most[..., None]).sum(axis=-1))))


MEASURES: Final[dict[str, Callable[[NDArray[np.floating], float], Floats]]] = {
    "maximum": _compute_maximum,
    "margin": _compute_margin,
    "entropy": _compute_entropy,
    "energy": _compute_energy,
}


def compute_confidence(logits: NDArray[np.floating], measure: str, temperature: float) -> Floats:
    """Confidence of each row of ``logits[images, classes]``; higher is more confident.

    The measures, with p = softmax(logits / T):

    - maximum: ``max p``
    - margin: the highest p minus the second highest
    - entropy: ``sum p log p``, the negative entropy in nats
    - energy: ``T logsumexp(logits / T)``, the negative free energy (W. Liu et al.,
      NeurIPS 2020, arXiv 2010.03759)

    Raises:
        ValueError: the measure is unknown, the temperature is not above 0, or there are
            fewer than two classes.
    """
    if measure not in MEASURES:
        raise ValueError(
            f"The confidence measure {measure!r} is unknown. Expected one of:"
            f" {', '.join(MEASURES)}."
        )
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"A temperature must be above 0, got {temperature}.")
    if logits.shape[-1] < 2:
        raise ValueError(
            f"Confidence needs at least two classes, got logits of shape {logits.shape}."
        )
    compute = MEASURES[measure]
    blocks = [compute(logits[rows], temperature) for rows in slice_rows(logits)]
    return np.concatenate(blocks) if blocks else compute(logits, temperature)


def fit_temperature(logits: NDArray[np.floating], target: NDArray[np.integer]) -> float:
    """The T in 0.01..100 that minimizes ``-mean log softmax(logits / T)[target]``.

    Shapes are ``logits[images, classes]`` and ``target[images]``. The loss is convex in
    1/T and therefore unimodal in log T, so golden-section search finds the minimum. C.
    Guo et al., ICML 2017, arXiv 1706.04599.
    """
    golden = (math.sqrt(5) - 1) / 2

    def compute_loss(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        parts = []
        for rows in slice_rows(logits):
            logs = compute_log_probabilities(logits[rows], temperature)
            parts.append(logs[np.arange(len(logs)), target[rows]])
        return -float(np.concatenate(parts).mean())

    low, high = math.log(0.01), math.log(100.0)
    for _ in range(50):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if compute_loss(left) < compute_loss(right) else (left, high)
    return math.exp((low + high) / 2)
