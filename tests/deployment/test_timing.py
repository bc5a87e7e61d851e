"""Latency and throughput of models that take turns."""

import time
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binom

from kd_app.config import RequestError
from kd_app.deployment.timing import (
    Benchmark,
    Timing,
    compute_median_ratio,
    select_nearest_rank,
    time_interleaved,
)

IMAGES = np.arange(3 * 2 * 2 * 2, dtype=np.uint8).reshape(2, 3, 2, 2)


class Slept:
    """Sleeps for some seconds per call and per image; records its inputs."""

    def __init__(
        self, call: float, image: float = 0.0, diary: list[str] | None = None, name: str = ""
    ) -> None:
        self.call, self.image, self.name = call, image, name
        self.diary = [] if diary is None else diary
        self.inputs: list[NDArray[np.uint8]] = []
        self.threads: set[int] = set()

    def infer_logits(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        self.diary.append(self.name)
        self.inputs.append(images)
        self.threads.add(torch.get_num_threads())
        time.sleep(self.call + self.image * len(images))
        return np.zeros((len(images), 2), dtype=np.float32)


def clock(
    seconds: float = 1e-9, rounds: int = 6, batch_sizes: tuple[int, ...] = (1, 4)
) -> Benchmark:
    return Benchmark(seconds=seconds, rounds=rounds, batch_sizes=list(batch_sizes))


def test_calls_take_turns_in_each_round_after_a_warm_up() -> None:
    diary: list[str] = []
    calls = {name: lambda name=name: diary.append(name) for name in ("teacher", "student")}
    seconds = time_interleaved(calls, rounds=3, repeats={"teacher": 1, "student": 2}, warm=1)
    assert diary == ["teacher", "teacher", "student", "student", "student"] * 3
    assert {name: each.shape for name, each in seconds.items()} == {
        "teacher": (3, 1),
        "student": (3, 2),
    }
    assert all((each > 0).all() for each in seconds.values())


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([5, 1, 3], 0.5, 3),
        ([4, 1, 2, 3], 0.5, 2),
        (range(1, 101), 0.95, 95),
        (range(1, 101), 0.99, 99),
        ([7], 0.99, 7),
        ([1, 2], 0.0, 1),
        ([1, 2], 1.0, 2),
    ],
)
def test_a_percentile_is_one_of_the_values(
    values: list[float], share: float, expected: float
) -> None:
    assert select_nearest_rank(np.array(list(values), dtype=float), share) == expected


@pytest.mark.parametrize(("rounds", "confidence"), [(6, 0.95), (20, 0.95), (21, 0.9), (40, 0.99)])
def test_the_interval_of_a_ratio_is_the_narrowest_pair_of_ranks(
    rounds: int, confidence: float
) -> None:
    ratios = np.arange(1.0, rounds + 1)
    result = compute_median_ratio(2 * ratios[::-1], np.full(rounds, 2.0), confidence)
    assert result.value == (rounds + 1) / 2
    rank = int(result.low)
    assert (result.low, result.high) == (rank, rounds + 1 - rank)
    assert 1 - 2 * binom.cdf(rank - 1, rounds, 0.5) >= confidence
    assert 1 - 2 * binom.cdf(rank, rounds, 0.5) < confidence


def test_too_few_rounds_give_an_unbounded_interval() -> None:
    result = compute_median_ratio(np.array([3.0, 5.0]), np.ones(2), 0.95)
    assert (result.value, result.low, result.high) == (4.0, 0.0, float("inf"))


def test_ratios_do_not_depend_on_drift() -> None:
    drift = np.linspace(1, 9, 12)
    slow, fast = (
        Timing(seconds * drift[:, None] * np.ones((12, 3)), 1 / (seconds * drift), 1, 1.0)
        for seconds in (0.5, 0.1)
    )
    for result in (fast.compute_speedup(slow, 0.95), fast.compute_throughput_ratio(slow, 0.95)):
        assert (result.value, result.low, result.high) == pytest.approx((5, 5, 5))


def test_latency_and_throughput_are_those_of_known_models() -> None:
    result = clock(seconds=0.1).measure(
        {"slow": Slept(0.01), "fast": Slept(0.002)}, {"slow": IMAGES, "fast": IMAGES}
    )
    slow, fast = result["slow"], result["fast"]
    assert 10 <= slow.latency_ms["p50"] < 20
    assert 2 <= fast.latency_ms["p50"] < 6
    assert slow.latency_ms["p50"] <= slow.latency_ms["p95"] <= slow.latency_ms["p99"]
    assert slow.latency_ms["calls"] == slow.latency.size >= 6
    assert 4 / 0.04 < slow.images_per_second <= 4 / 0.01
    assert 2 < fast.compute_speedup(slow, 0.95).value < 6
    assert 2 < fast.compute_throughput_ratio(slow, 0.95).value < 6
    assert slow.to_record()["batch_size"] == 4


def test_the_batch_size_with_the_highest_throughput_is_used() -> None:
    model = Slept(0.01)
    result = clock(seconds=0.1, batch_sizes=(8, 1, 2)).measure({"model": model}, {"model": IMAGES})[
        "model"
    ]
    assert result.batch_size == 8
    assert 8 / 0.04 < result.images_per_second <= 8 / 0.01


def test_no_larger_batch_is_tried_after_a_slow_one() -> None:
    model = Slept(0.0, 0.002)
    clock(seconds=0.005, batch_sizes=(1, 4, 16)).measure({"model": model}, {"model": IMAGES})
    assert {len(inputs) for inputs in model.inputs} == {1, 4}


def test_a_batch_repeats_the_images_in_order() -> None:
    model = Slept(0.0)
    clock(batch_sizes=(5,)).measure({"model": model}, {"model": IMAGES})
    batch = next(inputs for inputs in model.inputs if len(inputs) == 5)
    np.testing.assert_array_equal(batch, IMAGES[[0, 1, 0, 1, 0]])
    np.testing.assert_array_equal(
        next(inputs for inputs in model.inputs if len(inputs) == 1), IMAGES[:1]
    )


def test_torch_is_limited_to_one_thread_during_the_measurement() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        model = Slept(0.0)
        clock().measure({"model": model}, {"model": IMAGES})
        assert model.threads == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_cores_in_use_are_cpu_seconds_over_elapsed_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asleep = clock(seconds=0.1).measure({"model": Slept(0.004)}, {"model": IMAGES})["model"].cores
    monkeypatch.setattr(time, "process_time", lambda: 3 * time.perf_counter())
    busy = clock(seconds=0.1).measure({"model": Slept(0.004)}, {"model": IMAGES})["model"].cores
    assert 0 <= asleep < 0.5
    assert busy == pytest.approx(3, rel=0.1)


def test_invalid_settings_are_rejected() -> None:
    cases: list[dict[str, Any]] = [
        {"seconds": 0.0},
        {"rounds": 5},
        {"batch_sizes": []},
        {"batch_sizes": [0]},
    ]
    for wrong in cases:
        with pytest.raises(RequestError, match=next(iter(wrong))):
            Benchmark(**{"seconds": 1.0, "rounds": 6, "batch_sizes": [1], **wrong})
