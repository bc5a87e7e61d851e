"""Timing and record of a cascade."""

import numpy as np
import pytest

from kd_app.measurement.cascade_record import summarize_latency


def test_a_latency_is_summarized_in_milliseconds() -> None:
    summary = summarize_latency(np.arange(1, 101) / 1000)
    assert summary == pytest.approx(
        {"mean": 50.5, "p50": 50, "p95": 95, "p99": 99, "num_images": 100}
    )
