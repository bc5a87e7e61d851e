"""How long models take to answer, measured in turns so that ratios hold on a machine
whose speed drifts.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kd_app.config import Typed
from kd_app.deployment.cascade import CascadeStage

Floats = NDArray[np.float64]
Images = NDArray[np.uint8]


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    repeats: Mapping[str, int],
    warm: int = 0,
) -> dict[str, Floats]:
    """Seconds of each call, ``[rounds, repeats]`` of each name.

    In every round each takes its turn: first `warm` calls that are not measured (the
    one before left the caches to itself), then its repeats. What slows the machine down
    for longer than a round slows all of them, so that what is compared round by round
    is comparable.
    """
    taken = {name: np.zeros((rounds, repeats[name])) for name in calls}
    for turn in range(rounds):
        for name, call in calls.items():
            for _ in range(warm):
                call()
            for repeat in range(repeats[name]):
                start = time.perf_counter()
                call()
                taken[name][turn, repeat] = time.perf_counter() - start
    return taken


def select_nearest_rank(values: NDArray[np.floating], share: float) -> float:
    """The percentile that is one of the values: the smallest that at least `share`
    (0..1) of them do not exceed.
    """
    ordered = np.sort(values, axis=None)
    return float(ordered[max(0, math.ceil(share * ordered.size - 1e-9) - 1)])


@dataclass(frozen=True)
class Ratio:
    """A ratio of two models' figures with the ends of its interval."""

    value: float
    low: float
    high: float


def compute_median_ratio(above: Floats, below: Floats, confidence: float) -> Ratio:
    """The median over rounds of ``above[r] / below[r]``, and its interval by order
    statistics.

    Of R ratios the k-th smallest and the k-th largest hold the median with ``1 - 2
    P(Binomial(R, 1/2) < k)``, whatever the ratios' distribution (W. R. Thompson, Annals
    of Mathematical Statistics 1936): k is the largest with at least `confidence`, and
    without one it is 0 to infinity.
    """
    ratios = np.sort(above / below)
    rounds, k, tail = len(ratios), 0, 0.5 ** len(ratios)
    while 2 * tail <= 1 - confidence and k < rounds // 2:
        k += 1
        tail += math.comb(rounds, k) * 0.5**rounds
    low, high = (float(ratios[k - 1]), float(ratios[rounds - k])) if k else (0.0, math.inf)
    return Ratio(float(np.median(ratios)), low, high)


@dataclass(frozen=True)
class Timing:
    """What was measured of one model.

    latency: seconds of each call with one image, ``[rounds, calls]``. throughput:
    images a second in each round at `batch_size`, ``[rounds]``. cores: how many were in
    use meanwhile (seconds of processor over seconds); less than 1 where other work had
    the core, too.
    """

    latency: Floats
    throughput: Floats
    batch_size: int
    cores: float

    @property
    def latency_ms(self) -> dict[str, float]:
        """Percentiles by nearest rank over all calls, in milliseconds, and how many
        calls there were: of fewer than 100 the p99 is the slowest.
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
        """The median over rounds."""
        return float(np.median(self.throughput))

    def to_record(self) -> dict[str, Any]:
        """As a manifest tells of it."""
        return {
            "latency_ms": self.latency_ms,
            "images_per_second": self.images_per_second,
            "batch_size": self.batch_size,
            "cores": self.cores,
        }

    def compute_speedup(self, than: "Timing", confidence: float) -> Ratio:
        """How many times shorter the latency is than the other's: the ratio of the
        median calls of each round.
        """
        return compute_median_ratio(
            np.median(than.latency, axis=1), np.median(self.latency, axis=1), confidence
        )

    def compute_throughput_ratio(self, than: "Timing", confidence: float) -> Ratio:
        """How many times as many images a second there are as of the other, which is
        the ratio of costs where both pay the same price.
        """
        return compute_median_ratio(self.throughput, than.throughput, confidence)


class Benchmark(Typed):
    """Latency with one image, throughput at the best of `batch_sizes`; both with one
    thread, in `rounds` in which the models take turns.

    seconds: about as long is each model measured for its latency, and again for its
    throughput; a slow one at least once a round.
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
        self, models: Mapping[str, CascadeStage], images: Mapping[str, Images]
    ) -> dict[str, Timing]:
        """The timing of each model on its own `images` (``uint8 [N, C, H, W]``,
        repeated to fill a batch).

        A model with threads of its own is to be opened with one; torch's are set to one
        here, and back at the end. How many cores were in use is measured, so that one
        that has more threads can't hide it.
        """
        with limit_to_one_thread():
            single = {
                name: partial(model.infer_logits, _repeat_to_batch(images[name], 1))
                for name, model in models.items()
            }
            latency = self._time_calls(single)
            chosen = {
                name: self._find_best_batch(model, images[name]) for name, model in models.items()
            }
            full = {
                name: partial(model.infer_logits, _repeat_to_batch(images[name], chosen[name]))
                for name, model in models.items()
            }
            taken = self._time_calls(full)
            cores = {
                name: _measure_cores_used(call, self._seconds / self._rounds)
                for name, call in full.items()
            }
        return {
            name: Timing(
                latency[name], chosen[name] / taken[name].mean(axis=1), chosen[name], cores[name]
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

    def _find_best_batch(self, model: CascadeStage, images: Images) -> int:
        """The batch size with the most images a second in a short trial, from the
        smallest up; none after one that takes longer than `seconds`.
        """
        speed: dict[int, float] = {}
        for size in self._batch_sizes:
            seconds = _time_fastest(partial(model.infer_logits, _repeat_to_batch(images, size)))
            speed[size] = size / seconds
            if seconds > self._seconds:
                break
        return max(speed, key=speed.__getitem__)


def _time_fastest(call: Callable[[], object], tries: int = 3) -> float:
    """Seconds of the quickest of some calls, after one to warm up; a slow one is tried
    once.
    """
    start = time.perf_counter()
    call()
    if (first := time.perf_counter() - start) > 1:
        return first
    return max(1e-9, float(time_interleaved({"": call}, rounds=1, repeats={"": tries})[""].min()))


def _repeat_to_batch(images: Images, size: int) -> Images:
    return np.ascontiguousarray(np.resize(images, (size, *images.shape[1:])))


def _measure_cores_used(call: Callable[[], object], seconds: float) -> float:
    """Seconds of processor over seconds, of all threads of this process, while calls
    are made for that long.
    """
    wall, used = time.perf_counter(), time.process_time()
    while (passed := time.perf_counter() - wall) < seconds:
        call()
    return (time.process_time() - used) / passed


@contextmanager
def limit_to_one_thread() -> Iterator[None]:
    """torch with one thread, where there is a torch."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 1
    try:
        if torch:
            torch.set_num_threads(1)
        yield
    finally:
        if torch:
            torch.set_num_threads(before)
