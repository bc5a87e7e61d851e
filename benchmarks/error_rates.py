"""How often verdicts are wrong if the truth is known, and the page about that and about
intervals. ``python -m benchmarks.error_rates > docs/verdict.md``, or ``make verdict``
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, product
from typing import Literal

import numpy as np
from jaxtyping import Int
from scipy.stats import binom

from benchmarks.coverage_rates import CONFIDENCE, Rate, intervals
from kd_app.metrics.paired import is_shown_above
from kd_app.metrics.verdict import BOUNDS, VerdictMetric, VerdictRule, VerdictTally

Side = Literal["kept", "lost"]
SIDES: tuple[Side, ...] = ("kept", "lost")


def wrong_verdict(side: Side, n: int, margin: float, worse: float) -> Rate:
    """Rate of the verdict 'kept' (or 'lost') by top1 for a student that loses exactly
    the margin. `worse`: share of images that only the teacher classifies correctly.
    """
    truth = f"loses {100 * margin:g} points, {100 * (2 * worse - margin):g} % discordant"
    return Rate(
        f"top1: wrongly '{side}'",
        f"{n:,}",
        truth,
        "at most",
        1 - CONFIDENCE,
        _compute_rate(side, n, margin, (worse - margin, worse)),
        None,
    )


def _compute_rate(side: Side, n: int, margin: float, rates: tuple[float, float]) -> float:
    """Return the probability of the verdict, given the rates of better and worse
    images: for each number of 'worse' the verdict changes at one number of 'better'.
    """
    better, worse = rates
    total = 0.0
    for c in range(int(binom.ppf(1e-7, n, worse)), int(binom.ppf(1 - 1e-7, n, worse)) + 1):
        rest, rate = n - c, better / (1 - worse)
        low, high = int(binom.ppf(1e-7, rest, rate)) - 1, int(binom.ppf(1 - 1e-7, rest, rate)) + 1
        while high - low > 1:
            b = (low + high) // 2
            kept = (
                is_shown_above(b, c, n, -margin, CONFIDENCE)
                if side == "kept"
                else not is_shown_above(c, b, n, margin, CONFIDENCE)
            )
            low, high = (low, b) if kept else (b, high)
        total += binom.pmf(c, n, worse) * (
            binom.sf(low, rest, rate) if side == "kept" else binom.cdf(low, rest, rate)
        )
    return float(total)


def power(better: int, worse: int, n: int) -> Rate:
    """Rate of the verdict that a set with these counts could not show, on n_needed
    images, if its rates are the truth.
    """
    tally = VerdictTally(
        *(np.array([count]) for count in (n, n - worse, n - better, better, worse))
    )
    needed = (
        VerdictRule(metric="top1", margin=0.01, confidence=CONFIDENCE).judge_tally(tally).n_needed
    )
    assert needed is not None
    side: Side = "kept" if (better - worse) / n > -0.01 else "lost"
    measured = _compute_rate(side, needed, 0.01, (better / n, worse / n))
    return Rate(
        f"n_needed of top1: '{side}'",
        f"{needed:,}",
        f"{better} better, {worse} worse of {n}",
        "about",
        0.8,
        measured,
        None,
    )


@dataclass(frozen=True)
class Classes:
    """Recalls of teacher and student in each class, and images per class. `extra`: rate
    of 'worse' beyond the difference.
    """

    name: str
    teacher: tuple[float, ...]
    student: tuple[float, ...]
    images: int
    extra: float = 0.02

    def draw(self, rng: np.random.Generator, sets: int) -> Iterator[VerdictTally]:
        """Yield the counts of simulated sets of images."""
        for cells in np.stack(list(self._cells(rng, sets)), axis=1):
            both, better, worse, _ = cells.T
            yield VerdictTally(cells.sum(axis=1), both + better, both + worse, better, worse)

    def _cells(self, rng: np.random.Generator, sets: int) -> Iterator[Int[np.ndarray, "sets 4"]]:
        for t, s in zip(self.teacher, self.student, strict=True):
            worse = max(0.0, t - s) + self.extra
            better = worse + s - t
            yield rng.multinomial(
                self.images, np.clip([t - worse, better, worse, 1 - t - better], 0, 1), size=sets
            )


def by_classes(metric: VerdictMetric, classes: Classes, *, sets: int) -> Iterator[Rate]:
    """Rates of wrong verdicts for a student that loses exactly the margin, by balanced
    accuracy or worst class.
    """
    teacher, student = np.array(classes.teacher), np.array(classes.student)
    margin = float(
        teacher.mean() - student.mean()
        if metric == "balanced_accuracy"
        else teacher.min() - student.min()
    )
    bounds = [
        BOUNDS[metric](tally, 1 - CONFIDENCE, 0.0)
        for tally in classes.draw(np.random.default_rng(0), sets)
    ]
    n = f"{len(teacher)} x {classes.images:,}"
    for side, wrong in (
        ("kept", sum(low >= -margin for low, _ in bounds)),
        ("lost", sum(high <= -margin for _, high in bounds)),
    ):
        yield Rate(
            f"{metric}: wrongly '{side}'",
            n,
            classes.name,
            "at most",
            1 - CONFIDENCE,
            wrong / sets,
            sets,
        )


SAME, LESS = (0.9,) * 10, (0.88,) * 10
ONE_BAD = (0.7, *SAME[1:])
CLASSES: tuple[tuple[VerdictMetric, Classes], ...] = (
    ("balanced_accuracy", Classes("each of 10 classes loses 2 points", SAME, LESS, 50)),
    (
        "balanced_accuracy",
        Classes("the same, few images, hardly any discordant", SAME, LESS, 20, 0.0),
    ),
    ("balanced_accuracy", Classes("one class loses 20 points", SAME, ONE_BAD, 200)),
    ("balanced_accuracy", Classes("each of 100 classes loses 2 points", SAME * 10, LESS * 10, 10)),
    (
        "worst_class",
        Classes("one of 10 equal classes loses 5 points", SAME, (0.85, *SAME[1:]), 100),
    ),
    ("worst_class", Classes("each of 10 equal classes loses 5 points", SAME, (0.85,) * 10, 100)),
    (
        "worst_class",
        Classes("the teacher's one bad class loses 5 points", ONE_BAD, (0.65, *SAME[1:]), 100),
    ),
    (
        "worst_class",
        Classes("another class becomes the worst", ONE_BAD, (0.9, 0.65, *SAME[2:]), 100, 0.05),
    ),
)


def verdicts() -> Iterator[Rate]:
    """Yield rates of wrong verdicts for students that lose exactly the margin, and the
    power at n_needed images.
    """
    for n, margin, extra, side in product(
        (100, 359, 1000, 10_000), (0.01, 0.05), (0.0, 0.003, 0.02), SIDES
    ):
        if n < 10_000 or margin < 0.05:
            yield wrong_verdict(side, n, margin, margin + extra)
    for metric, classes in CLASSES:
        yield from by_classes(metric, classes, sets=1000)
    for counts in ((6, 7, 300), (0, 0, 100), (0, 1, 359), (30, 50, 1000), (5, 12, 300)):
        yield power(*counts)


TEXT = """# How often the verdict is wrong

Written by `make verdict`. The truth is known, and is the hardest case: the student loses exactly
the margin, so that both 'kept' and 'lost' are wrong. Each may occur in at most 5 % of all test
sets (`verdict.confidence=0.95`). Rates with a ± are simulated (three standard errors of the
simulation); the others are computed exactly over all possible sets.

- top1 is judged by an exact test on Tango's score (Berger and Boos 1994), whose error rate never
  exceeds the claim. The score test alone, with the normal distribution, wrongly gives 'kept' in up
  to 5.5 % and 'lost' in up to 7.5 % of sets with few discordant images.
- balanced_accuracy is judged by bounds that combine the bounds of each class (Zou and Donner
  2008). The bootstrap over images wrongly gave 'kept' in up to 7.5 % of sets with few discordant
  images.
- worst_class is judged by simultaneous bounds of all pairs of classes. The measured recall of the
  worst class is biased downward, also for the teacher. The bootstrap wrongly gave 'kept' in 39 %
  of sets if one of ten equal classes lost the margin, and in 56 % with ten times as many images.
  Valid bounds need more images.
- Intervals of shares (accuracy, agreement, flips) are Clopper and Pearson's; intervals of paired
  differences (gain, controls, cascades, exported files) invert the exact test of the verdict, with
  half of the error on each side. The table has their smallest coverage over all true rates: they
  never fall below 95 %. Wilson's interval covers as little as 84 % of sets if hardly any image is a
  hit or a miss, Tango's 92 %; a bootstrap has no width if no image differs.
- Intervals of mean accuracies over seeds are Student's on the logit scale, so that they stay within
  0 and 100 %.
- The interval of retention combines those of the difference and of the teacher's accuracy.
- The gap closed has a bootstrap interval, if at least 10 images differ; it is approximate on a few
  hundred images.

The error rates of rejected methods (the score test alone, the bootstraps) were measured once,
when the methods were chosen; they are not in the table below.
"""


if __name__ == "__main__":
    print(TEXT)
    print("| what | images | truth | claimed | measured |\n|---|---|---|---|---|")
    for rate in chain(verdicts(), intervals()):
        print(rate.row(), flush=True)
