"""The latency budget of a student."""

from pydantic import PositiveFloat

from kd_app.config import Typed
from kd_app.deployment.formats.base import Format
from kd_app.deployment.timing import Benchmark


class LatencyBudget(Typed, called="budget"):
    """The highest 95th percentile of latency (ms) of the student as a file in `format`,
    for single images on one thread.
    """

    def __init__(self, *, latency_ms: PositiveFloat, format: Format, benchmark: Benchmark) -> None:
        self.latency_ms = latency_ms
        self.format = format
        self.benchmark = benchmark
