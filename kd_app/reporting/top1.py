"""Top-1 accuracy with its interval, as a value and as a phrase."""

import numpy as np

from kd_app.metrics.measure import estimate_rate
from kd_app.metrics.record import Predictions
from kd_app.reporting.metrics import Estimate


def estimate_top1(predictions: Predictions, confidence: float) -> Estimate:
    """Top-1 accuracy with its exact interval."""
    top1, (low, high) = estimate_rate(predictions.hits, confidence)
    return Estimate(value=top1, low=low, high=high)


def format_top1(predictions: Predictions) -> str:
    """'top1 0.923 (0.901 to 0.940, 10 classes, 359 images)'."""
    top1, target = estimate_top1(predictions, 0.95), predictions.target
    return (
        f"top1 {top1.value:.3f} ({top1.low:.3f} to {top1.high:.3f},"
        f" {len(np.unique(target))} classes, {len(target)} images)"
    )
