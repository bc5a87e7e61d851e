"""Top-1 accuracy with its interval."""

import numpy as np

from kd_app.metrics.record import Predictions
from kd_app.reporting.top1 import estimate_top1, format_top1


def test_top1_has_an_interval() -> None:
    target = np.arange(100) % 4
    logits = np.eye(4)[np.where(np.arange(100) < 90, target, (target + 1) % 4)]
    predictions = Predictions(np.arange(100), target, logits.astype(np.float32))
    top1 = estimate_top1(predictions, 0.95)
    assert top1.value == 0.9
    assert (top1.low or 1) < 0.9 < (top1.high or 0)
    assert format_top1(predictions) == "top1 0.900 (0.824 to 0.951, 4 classes, 100 images)"
