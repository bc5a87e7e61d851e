"""Which images a cascade sends on, what that costs and loses, and the threshold to
choose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kd_app.deployment.confidence import compute_confidence


@dataclass(frozen=True)
class OperatingPoint:
    """A cascade at one set of thresholds, on images with labels.

    thresholds: of each stage but the last; minus infinity sends nothing on, infinity
    everything. shares: of the images, that reach each stage. better, worse: images that
    only the cascade, or only the last stage, has right; `worse` are the negative flips.
    cost: expected cost of an image, in the unit of the stages' costs.
    """

    thresholds: tuple[float, ...]
    shares: tuple[float, ...]
    accuracy: float
    better: int
    worse: int
    cost: float


@dataclass(frozen=True)
class RoutingChoice:
    """What to ship: the cascade at `rung`, or the first or the last stage alone; and
    every rung that was looked at, safest first.

    proven: how many rungs, from the safest down, were shown to keep the margin. cost:
    expected cost of an image of what is to be shipped.
    """

    answer: Literal["cascade", "first", "last"]
    rung: OperatingPoint
    cost: float
    proven: int
    curve: tuple[OperatingPoint, ...]


def compute_routing_curve(
    logits: Sequence[NDArray[np.floating]],
    target: NDArray[np.integer],
    costs: Sequence[float],
    *,
    measure: str,
    temperatures: Sequence[float],
    num_steps: int,
) -> tuple[OperatingPoint, ...]:
    """`num_steps` + 1 rungs from 'everything is sent on' (the last stage alone answers)
    down to 'nothing is' (the first alone answers).

    logits: ``[images, classes]`` of each stage, from cheap to dear, on the same images;
    costs: of one image through each stage. At a rung every threshold is the same
    quantile of its own stage's confidence, so the shares fall from rung to rung.

    Raises:
        ValueError: fewer than two stages or no step; stages, costs, temperatures or
        images that do not match.
    """
    if (
        not (len(logits) == len(costs) == len(temperatures) >= 2)
        or num_steps < 1
        or any(len(each) != len(target) for each in logits)
        or not len(target)
    ):
        raise ValueError(
            "A curve needs a step, an image, and two stages or more, each with a cost, a"
            " temperature and the logits of every image."
        )
    sure = [
        compute_confidence(each, measure, heat)
        for each, heat in zip(logits[:-1], temperatures[:-1], strict=True)
    ]
    right = np.stack([each.argmax(axis=-1) == target for each in logits])
    levels = [step / num_steps for step in range(num_steps, -1, -1)]
    return tuple(
        _build_point(tuple(_find_threshold(each, level) for each in sure), sure, right, costs)
        for level in levels
    )


def measure_thresholds(
    thresholds: Sequence[float],
    logits: Sequence[NDArray[np.floating]],
    target: NDArray[np.integer],
    costs: Sequence[float],
    *,
    measure: str,
    temperatures: Sequence[float],
) -> OperatingPoint:
    """The rung of thresholds that were chosen on other images; else as `compute_routing_curve`."""
    sure = [
        compute_confidence(each, measure, heat)
        for each, heat in zip(logits[:-1], temperatures[:-1], strict=True)
    ]
    return _build_point(
        tuple(thresholds),
        sure,
        np.stack([each.argmax(axis=-1) == target for each in logits]),
        costs,
    )


def _find_threshold(sure: NDArray[np.float64], level: float) -> float:
    if level in (0.0, 1.0):
        return float("inf") if level else float("-inf")
    return float(np.quantile(sure, level))


def _build_point(
    thresholds: tuple[float, ...],
    sure: list[NDArray[np.float64]],
    right: NDArray[np.bool_],
    costs: Sequence[float],
) -> OperatingPoint:
    reaches = [np.ones(right.shape[1], dtype=bool)]
    for each, threshold in zip(sure, thresholds, strict=True):
        reaches.append(reaches[-1] & (each < threshold))
    answered = right[np.sum(reaches, axis=0) - 1, np.arange(right.shape[1])]
    shares = tuple(float(each.mean()) for each in reaches)
    better, worse = int((answered & ~right[-1]).sum()), int((right[-1] & ~answered).sum())
    cost = sum(share * each for share, each in zip(shares, costs, strict=True))
    return OperatingPoint(thresholds, shares, float(answered.mean()), better, worse, float(cost))


def choose_threshold(
    curve: Sequence[OperatingPoint],
    costs: Sequence[float],
    *,
    num_images: int,
    margin: float,
    confidence_level: float,
) -> RoutingChoice:
    """The cheapest rung of `compute_routing_curve` shown to lose at most `margin` of accuracy
    (0..1) against the last stage, or one stage alone.

    The rungs are tested from the safest down, each by the exact paired test at the full
    level, and the first that fails ends it: a fixed-sequence test, which errs with a
    probability of at most ``1 - confidence_level`` over all rungs and needs no
    correction for their number (A. Angelopoulos et al., Annals of Applied Statistics
    2025, arXiv 2110.01052; W. Maurer, L. Hothorn, W. Lehmacher, 1995). The first rung
    is the last stage itself and needs no test. The order and the thresholds do not look
    at the labels; temperatures do, so the level is exact for those that were fitted on
    other images, and approximate for those fitted on these.

    'last': no proven rung is cheaper than the last stage alone. 'first': the first
    stage alone is proven and the cheapest.
    """
    from kd_app.metrics.paired import is_shown_above

    proven = 1
    while proven < len(curve) and is_shown_above(
        curve[proven].better, curve[proven].worse, num_images, -margin, confidence_level
    ):
        proven += 1
    best = min(reversed(curve[:proven]), key=lambda rung: rung.cost)
    if best.cost >= costs[-1]:
        return RoutingChoice("last", curve[0], float(costs[-1]), proven, tuple(curve))
    return RoutingChoice(
        "first" if best is curve[-1] else "cascade", best, best.cost, proven, tuple(curve)
    )
