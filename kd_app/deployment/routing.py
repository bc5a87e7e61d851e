"""Routing of a cascade: cost, loss and choice of the thresholds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kd_app.deployment.confidence import compute_confidence


@dataclass(frozen=True)
class OperatingPoint:
    """A cascade at one set of thresholds, on images with labels.

    thresholds: of each stage but the last; minus infinity forwards no image, infinity
    forwards all · shares: share of the images that reach each stage · better: images
    that only the cascade gets right · worse: images that only the last stage gets right
    (negative flips) · cost: expected cost per image, in the unit of the stages' costs.
    """

    thresholds: tuple[float, ...]
    shares: tuple[float, ...]
    accuracy: float
    better: int
    worse: int
    cost: float


@dataclass(frozen=True)
class RoutingChoice:
    """The choice to deploy: the cascade, or the first or the last stage alone.

    rung: the chosen operating point · cost: expected cost per image of the choice ·
    proven: number of operating points, from the safest on, that were shown to keep the
    margin · curve: all operating points, safest first.
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
    """Compute `num_steps` + 1 operating points, safest first.

    The first point forwards all images (the last stage alone predicts), the last point
    forwards none (the first stage alone predicts). At each point, every threshold is
    the same quantile of its own stage's confidence, so the shares fall from point to
    point.

    logits: ``[images, classes]`` of each stage, from cheap to expensive, on the same
    images · costs: cost of one image in each stage.

    Raises:
        ValueError: there are fewer than two stages or no steps, or the numbers of
            stages, costs, temperatures or images do not match.
    """
    counts_match = len(logits) == len(costs) == len(temperatures) >= 2
    images_match = all(len(each) == len(target) > 0 for each in logits)
    if not counts_match or not images_match or num_steps < 1:
        raise ValueError(
            "A routing curve needs at least one step, one image and two stages, and for each stage"
            " a cost, a temperature and the logits of every image."
        )
    confidences, hits = _evaluate_stages(logits, target, measure, temperatures)
    points = []
    for step in range(num_steps, -1, -1):
        thresholds = tuple(_find_threshold(each, step / num_steps) for each in confidences)
        points.append(_build_point(thresholds, confidences, hits, costs))
    return tuple(points)


def measure_thresholds(
    thresholds: Sequence[float],
    logits: Sequence[NDArray[np.floating]],
    target: NDArray[np.integer],
    costs: Sequence[float],
    *,
    measure: str,
    temperatures: Sequence[float],
) -> OperatingPoint:
    """Compute the operating point of thresholds that were chosen on other images.

    The other arguments are those of `compute_routing_curve`.
    """
    confidences, hits = _evaluate_stages(logits, target, measure, temperatures)
    return _build_point(tuple(thresholds), confidences, hits, costs)


def _evaluate_stages(
    logits: Sequence[NDArray[np.floating]],
    target: NDArray[np.integer],
    measure: str,
    temperatures: Sequence[float],
) -> tuple[list[NDArray[np.float64]], NDArray[np.bool_]]:
    """Confidences of each stage but the last, and hits ``[stages, images]``."""
    confidences = [
        compute_confidence(each, measure, temperature)
        for each, temperature in zip(logits[:-1], temperatures[:-1], strict=True)
    ]
    return confidences, np.stack([each.argmax(axis=-1) == target for each in logits])


def _find_threshold(confidence: NDArray[np.float64], level: float) -> float:
    if level in (0.0, 1.0):
        return float("inf") if level else float("-inf")
    return float(np.quantile(confidence, level))


def _build_point(
    thresholds: tuple[float, ...],
    confidences: list[NDArray[np.float64]],
    hits: NDArray[np.bool_],
    costs: Sequence[float],
) -> OperatingPoint:
    reaches = [np.ones(hits.shape[1], dtype=bool)]
    for confidence, threshold in zip(confidences, thresholds, strict=True):
        reaches.append(reaches[-1] & (confidence < threshold))
    cascade_hits = hits[np.sum(reaches, axis=0) - 1, np.arange(hits.shape[1])]
    shares = tuple(float(each.mean()) for each in reaches)
    cost = sum(share * each for share, each in zip(shares, costs, strict=True))
    return OperatingPoint(
        thresholds=thresholds,
        shares=shares,
        accuracy=float(cascade_hits.mean()),
        better=int((cascade_hits & ~hits[-1]).sum()),
        worse=int((hits[-1] & ~cascade_hits).sum()),
        cost=float(cost),
    )


def choose_threshold(
    curve: Sequence[OperatingPoint],
    costs: Sequence[float],
    *,
    num_images: int,
    margin: float,
    confidence_level: float,
) -> RoutingChoice:
    """Choose the cheapest operating point that is shown to keep the margin.

    The accuracy loss against the last stage must be shown to be at most `margin` (a
    share of 1). The exact paired test at the full level runs on one point after
    another, safest first, and stops at the first point that fails. This fixed-sequence
    test errs with a probability of at most ``1 - confidence_level`` over all points and
    needs no correction for their number (A. Angelopoulos et al., Annals of Applied
    Statistics 2025, arXiv 2110.01052; W. Maurer, L. Hothorn, W. Lehmacher, 1995). The
    first point is the last stage itself and needs no test.

    Order and thresholds do not depend on the labels, but fitted temperatures do. So the
    level is exact for temperatures that were fitted on other images and approximate
    otherwise.

    The choice is 'last' if no proven point is cheaper than the last stage alone, and
    'first' if the first stage alone is proven and the cheapest.
    """
    from kd_app.metrics.paired import is_shown_above

    proven = 1
    while proven < len(curve) and is_shown_above(
        curve[proven].better, curve[proven].worse, num_images, -margin, confidence_level
    ):
        proven += 1
    best = min(reversed(curve[:proven]), key=lambda point: point.cost)
    if best.cost >= costs[-1]:
        return RoutingChoice("last", curve[0], float(costs[-1]), proven, tuple(curve))
    return RoutingChoice(
        "first" if best is curve[-1] else "cascade", best, best.cost, proven, tuple(curve)
    )
