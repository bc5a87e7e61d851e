"""Latency and throughput of models.

Models take turns, so that ratios stay valid on a machine whose speed drifts.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kd_app.config import Typed
from kd_app.deployment.cascade import LogitsModel
from kd_app.deployment.clock import read_cpu_seconds, read_seconds

Floats = NDArray[np.float64]
Images = NDArray[np.uint8]


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    repeats: Mapping[str, int],
    warm: int = 0,
) -> dict[str, Floats]:
    """Measure the seconds of each call, ``[rounds, repeats]`` for each name.

    In every round, each name gets `warm` unmeasured calls, because the previous name
    has filled the caches, and then its `repeats`. A slowdown of the machine for longer
    than a round affects all names, so compare them round by round.
    """
    seconds = {name: np.zeros((rounds, repeats[name])) for name in calls}
    for turn in range(rounds):
        for name, call in calls.items():
            for _ in range(warm):
                call()
            for repeat in range(repeats[name]):
                start = read_seconds()
                call()
                seconds[name][turn, repeat] = read_seconds() - start
    return seconds


def select_nearest_rank(values: NDArray[np.floating], share: float) -> float:
    """Percentile by nearest rank.

    The smallest of the values that at least a `share` (0..1) of them do not exceed.
    """
    ordered = np.sort(values, axis=None)
    return float(ordered[max(0, math.ceil(share * ordered.size - 1e-9) - 1)])


@dataclass(frozen=True)
class TimingRatio:
    """A ratio of two models' timings with the bounds of its interval."""

    value: float
    low: float
    high: float


def compute_median_ratio(above: Floats, below: Floats, confidence: float) -> TimingRatio:
    """The median over rounds of ``above[r] / below[r]``, with an interval.

    The interval uses order statistics: the k-th smallest and the k-th largest of R
    ratios enclose the median with probability ``1 - 2 P(Binomial(R, 1/2) < k)``, for
    any distribution of the ratios (W. R. Thompson, Annals of Mathematical Statistics
    1936). k is the largest number with at least `confidence`; without such a k, the
    interval is 0 to infinity.
    """
    ratios = np.sort(above / below)
    rounds, k, tail = len(ratios), 0, 0.5 ** len(ratios)
    while 2 * tail <= 1 - confidence and k < rounds // 2:
        k += 1
        tail += math.comb(rounds, k) * 0.5**rounds
    low, high = (float(ratios[k - 1]), float(ratios[rounds - k])) if k else (0.0, math.inf)
    return TimingRatio(float(np.median(ratios)), low, high)


@dataclass(frozen=True)
class Timing:
    """Latency and throughput of one model.

    latency: seconds of each call with one image, ``[rounds, calls]`` · throughput:
    images per second in each round at `batch_size`, ``[rounds]`` · cores: number of
    cores in use (CPU seconds over seconds); less than 1 if other work shared the core.
    """

    latency: Floats
    throughput: Floats
    batch_size: int
    cores: float

    @property
    def latency_ms(self) -> dict[str, float]:
        """Percentiles over all calls in milliseconds, and the number of calls.

        With fewer than 100 calls, the p99 is the slowest call.
        """
        shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
        return {
            **{
                name: 1000 * select_nearest_rank(self.latency, share)
                for name, share in shares.items()
            },
            "calls": self.latency.size,
        }

    @property
    def images_per_second(self) -> float:
        """Median throughput over rounds."""
        return float(np.median(self.throughput))

    def to_record(self) -> dict[str, Any]:
        """Build the entries of a manifest."""
        return {
            "latency_ms": self.latency_ms,
            "images_per_second": self.images_per_second,
            "batch_size": self.batch_size,
            "cores": self.cores,
        }

    def compute_speedup(self, other: "Timing", confidence: float) -> TimingRatio:
        """Factor by which the latency is shorter than that of `other`.

        Based on the median call of each round.
        """
        return compute_median_ratio(
            np.median(other.latency, axis=1), np.median(self.latency, axis=1), confidence
        )

    def compute_throughput_ratio(self, other: "Timing", confidence: float) -> TimingRatio:
        """Throughput relative to that of `other`.

        This is also the inverse ratio of costs if both models have the same price per
        hour.
        """
        return compute_median_ratio(self.throughput, other.throughput, confidence)


class Benchmark(Typed):
    """Measures latency with one image and throughput at the best of `batch_sizes`.

    Both use one thread; the models take turns in `rounds` rounds.

    seconds: approximate time per model for latency, and again for throughput; slow
    models run at least once per round.
    """

    def __init__(
        self,
        *,
        seconds: Annotated[float, Field(gt=0)],
        rounds: Annotated[int, Field(ge=6)],
        batch_sizes: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)],
    ) -> None:
        self._seconds = seconds
        self._rounds = rounds
        self._batch_sizes = sorted(batch_sizes)

    def measure(
        self, models: Mapping[str, LogitsModel], images: Mapping[str, Images]
    ) -> dict[str, Timing]:
        """Time each model on its own `images` (``uint8 [N, C, H, W]``).

        The images are repeated to fill a batch. Open models of other runtimes with one
        thread; torch is limited to one thread during the measurement. The number of
        cores in use is measured, which exposes a model with more threads.
        """
        with limit_to_one_thread():
            single = {
                name: partial(model.infer_logits, _repeat_to_batch(images[name], 1))
                for name, model in models.items()
            }
            latency = self._time_calls(single)
            batch_size = {
                name: self._find_best_batch(model, images[name]) for name, model in models.items()
            }
            full = {
                name: partial(model.infer_logits, _repeat_to_batch(images[name], batch_size[name]))
                for name, model in models.items()
            }
            seconds = self._time_calls(full)
            cores = {
                name: _measure_cores_used(call, self._seconds / self._rounds)
                for name, call in full.items()
            }
        return {
            name: Timing(
                latency[name],
                batch_size[name] / seconds[name].mean(axis=1),
                batch_size[name],
                cores[name],
            )
            for name in models
        }

    def _time_calls(self, calls: Mapping[str, Callable[[], object]]) -> dict[str, Floats]:
        once = {name: _time_fastest(call) for name, call in calls.items()}
        repeats = {
            name: max(1, int(self._seconds / self._rounds / seconds))
            for name, seconds in once.items()
        }
        return time_interleaved(calls, rounds=self._rounds, repeats=repeats, warm=1)

    def _find_best_batch(self, model: LogitsModel, images: Images) -> int:
        """Find the batch size with the highest throughput in a short trial.

        Sizes are tried in ascending order up to the first that takes longer than
        `seconds`.
        """
        speed: dict[int, float] = {}
        for size in self._batch_sizes:
            seconds = _time_fastest(partial(model.infer_logits, _repeat_to_batch(images, size)))
            speed[size] = size / seconds
            if seconds > self._seconds:
                break
        return max(speed, key=speed.__getitem__)


def _time_fastest(call: Callable[[], object], tries: int = 3) -> float:
    """Seconds of the fastest call after a warm-up; a slow call runs only once."""
    start = read_seconds()
    call()
    if (first := read_seconds() - start) > 1:
        return first
    return max(1e-9, float(time_interleaved({"": call}, rounds=1, repeats={"": tries})[""].min()))


def _repeat_to_batch(images: Images, size: int) -> Images:
    return np.ascontiguousarray(np.resize(images, (size, *images.shape[1:])))


def _measure_cores_used(call: Callable[[], object], seconds: float) -> float:
    """CPU seconds of all threads per second, during repeated calls."""
    start, cpu_start = read_seconds(), read_cpu_seconds()
    while (elapsed := read_seconds() - start) < seconds:
        call()
    return (read_cpu_seconds() - cpu_start) / elapsed


@contextmanager
def limit_to_one_thread() -> Iterator[None]:
    """Limit torch to one thread, if torch is imported."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 1
    try:
        if torch:
            torch.set_num_threads(1)
        yield
    finally:
        if torch:
            torch.set_num_threads(before)
