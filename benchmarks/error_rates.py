"""How often verdicts and intervals are wrong if the truth is known. ``python -m
benchmarks.error_rates > docs/verdict.md``, or ``make verdict``
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import binom

from kd_app.metrics.intervals import compute_share_interval
from kd_app.metrics.measure import DifferenceRatio, PairedDifference, PairedRatio
from kd_app.metrics.paired import is_shown_above
from kd_app.metrics.seeds import (
    SeedDifference,
    compare_by_seed,
    correct_for_multiplicity,
    summarize_seeds,
)
from kd_app.metrics.verdict import BOUNDS, VerdictMetric, VerdictRule, VerdictTally

CONFIDENCE = 0.95
Side = Literal["kept", "lost"]
SIDES: tuple[Side, ...] = ("kept", "lost")


@dataclass(frozen=True)
class Rate:
    """A measured rate and the claimed one.

    claim: 'at most' for errors, 'about' for coverage, 'at least' for power. sets:
    number of simulated sets; None if the rate is computed exactly.
    """

    what: str
    n: str
    truth: str
    claim: str
    claimed: float
    measured: float
    sets: int | None

    @property
    def error(self) -> float:
        """Three standard errors of the simulation."""
        return (
            3 * float(np.sqrt(self.claimed * (1 - self.claimed) / self.sets)) if self.sets else 0.0
        )

    def row(self) -> str:
        """Return the row in Markdown."""
        plus = f" ± {100 * self.error:.1f}" if self.sets else ""
        return (
            f"| {self.what} | {self.n} | {self.truth} | {self.claim} {100 * self.claimed:g} % |"
            f" {100 * self.measured:.2f}{plus} % |"
        )


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
        _called(side, n, margin, (worse - margin, worse)),
        None,
    )


def _called(side: Side, n: int, margin: float, rates: tuple[float, float]) -> float:
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
    measured = _called(side, needed, 0.01, (better / n, worse / n))
    return Rate(
        f"n_needed of top1: '{side}'",
        f"{needed:,}",
        f"{better} better, {worse} worse of {n}",
        "about",
        0.8,
        measured,
        None,
    )


def share_coverage(n: int) -> Rate:
    """Smallest coverage of the interval of a share, over all shares."""
    bounds = [compute_share_interval(hits, n, CONFIDENCE) for hits in range(n + 1)]
    shares, hits = np.linspace(0, 1, 2001)[:, None], np.arange(n + 1)
    low, high = np.array(bounds).T
    covers = (low <= shares) & (shares <= high)
    coverage = (binom.pmf(hits, n, shares) * covers).sum(axis=1)
    where = int(coverage.argmin())
    return Rate(
        "share of images: smallest coverage",
        f"{n:,}",
        f"{100 * shares[where, 0]:.3g} %",
        "at least",
        CONFIDENCE,
        float(coverage[where]),
        None,
    )


def difference_coverage(n: int, differences: Sequence[float]) -> Rate:
    """Smallest coverage of the interval of a paired difference, over these true
    differences and all rates of discordant images. By symmetry, differences below 0
    have the coverage of those above.
    """
    coverage, difference, worse = min(_cover_difference(n, each) for each in differences)
    discordant = 100 * (2 * worse + difference)
    return Rate(
        "difference of two models: smallest coverage",
        f"{n:,}",
        f"{100 * difference:.3g} points, {discordant:.3g} % discordant",
        "at least",
        CONFIDENCE,
        coverage,
        None,
    )


def _cover_difference(n: int, difference: float) -> tuple[float, float, float]:
    """Smallest coverage of a true difference, the difference, and the rate of 'worse'
    with that coverage.
    """
    confidence = 0.5 + CONFIDENCE / 2
    counts = np.arange(n + 1)
    covers = np.zeros((n + 1, n + 1), dtype=bool)  # [worse, better]
    for worse in counts.tolist():
        rest = n - worse

        def is_above(better: int, worse: int = worse) -> bool:
            return is_shown_above(better, worse, n, difference, confidence)

        def is_not_below(better: int, worse: int = worse) -> bool:
            return not is_shown_above(worse, better, n, -difference, confidence)

        first, least = _find_first(rest, is_above), _find_first(rest, is_not_below)
        covers[worse, least:first] = True
    results = []
    for worse in np.linspace(0, 1, 401) * (1 - difference) / 2:
        rate = (worse + difference) / (1 - worse)
        better_pmf = binom.pmf(counts, n - counts[:, None], min(rate, 1.0))
        coverage = binom.pmf(counts, n, worse) @ np.where(covers, better_pmf, 0).sum(axis=1)
        results.append((float(coverage), difference, float(worse)))
    return min(results)


def _find_first(most: int, holds: Callable[[int], bool]) -> int:
    """The first number in 0..most at which `holds` becomes true; most + 1 if none."""
    low, high = -1, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


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


DIFFERENCES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
"""True differences at which the coverage of paired intervals is computed."""
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


def gap_coverage(
    n: int, accuracy: tuple[float, float, float], *, sets: int, resamples: int = 1000
) -> Rate:
    """Coverage of the percentile interval of the gap closed. Teacher, student and
    control are correlated by hard and easy images.

    Drawing counts of the eight patterns of right and wrong is equivalent to drawing
    images with replacement.
    """
    rng = np.random.default_rng(0)
    cells = _patterns(accuracy)
    signs = np.array(
        [[pattern >> role & 1 for pattern in range(8)] for role in range(3)]
    )  # teacher, student, control
    teacher, student, control = accuracy
    held, defined = 0, 0
    for counts in rng.multinomial(n, cells, size=sets):
        hits = np.repeat(signs > 0, counts, axis=1)
        differences = [PairedDifference(hits[a], hits[b]) for a, b in ((1, 2), (0, 2), (0, 1))]
        ratio = DifferenceRatio(differences[0], differences[1], differences[2], np.arange(n))
        rates = rng.multinomial(n, counts / n, size=resamples) @ signs.T / n
        draws = np.stack([rates[:, 1] - rates[:, 2], rates[:, 0] - rates[:, 2]], axis=1)
        _, (low, high) = ratio.estimate(draws, CONFIDENCE)
        defined += not math.isnan(low)
        held += low <= (student - control) / (teacher - control) <= high
    share = f" (defined in {100 * defined / sets:.0f} % of the sets)" if defined < sets else ""
    return Rate(
        "bootstrap: holds the gap closed",
        f"{n:,}",
        f"teacher {100 * teacher:g}, student {100 * student:g}, control {100 * control:g} %{share}",
        "about",
        CONFIDENCE,
        held / max(defined, 1),
        defined,
    )


def retention_coverage(n: int, teacher: float, better: float, worse: float, *, sets: int) -> Rate:
    """Coverage of the interval of the retention; `better` and `worse` are the rates of
    images that only the student, or only the teacher, gets right.
    """
    rng, held = np.random.default_rng(0), 0
    cells = [teacher - worse, better, worse, 1 - teacher - better]
    student_hits, teacher_hits = np.array([[1, 1, 0, 0], [1, 0, 1, 0]], dtype=bool)
    for counts in rng.multinomial(n, cells, size=sets):
        ratio = PairedRatio(np.repeat(student_hits, counts), np.repeat(teacher_hits, counts))
        _, (low, high) = ratio.estimate(np.empty((0, 0)), CONFIDENCE)
        held += low <= (teacher + better - worse) / teacher <= high
    return Rate(
        "retention",
        f"{n:,}",
        f"teacher {100 * teacher:g} %, {100 * better:g} % better, {100 * worse:g} % worse",
        "at least",
        CONFIDENCE,
        held / sets,
        sets,
    )


def _patterns(accuracy: tuple[float, float, float]) -> Float[np.ndarray, " 8"]:
    """Return the probabilities of the patterns (bit 0: teacher right, 1: student, 2:
    control). An image is easy or hard for all three models.
    """
    hard = 3 * (1 - min(accuracy))
    result = np.zeros(8)
    for pattern in range(8):
        right = [
            (1 - (1 - a) / hard) if pattern >> role & 1 else (1 - a) / hard
            for role, a in enumerate(accuracy)
        ]
        result[pattern] = hard * np.prod(right)
    result[7] += 1 - hard
    return result


def seeds_coverage(seeds: int, mean: float, deviation: float, *, sets: int) -> Rate:
    """Coverage of the interval of a mean accuracy, for accuracies on 10,000 images that
    vary over seeds with a beta distribution.
    """
    rng, held, defined = np.random.default_rng(0), 0, 0
    size = mean * (1 - mean) / deviation**2 - 1
    for values in np.round(rng.beta(mean * size, (1 - mean) * size, size=(sets, seeds)), 4):
        result = summarize_seeds(dict(enumerate(values.tolist())), CONFIDENCE)
        if result.low is not None and result.high is not None:
            defined += 1
            held += result.low <= mean <= result.high
    return Rate(
        "mean accuracy over seeds",
        f"{seeds} seeds",
        f"mean {100 * mean:g} %, deviation {100 * deviation:g} points",
        "about",
        CONFIDENCE,
        held / defined,
        defined,
    )


def holm_error(methods: int, seeds: int, *, sets: int) -> Rate:
    """Rate at which any of several methods equal to the baseline is shown to differ."""
    rng, wrong = np.random.default_rng(0), 0
    for values in rng.normal(0.92, 0.002, size=(sets, methods + 1, seeds)):
        base, *others = (dict(enumerate(row.tolist())) for row in values)
        family = [
            result for other in others if (result := compare_by_seed(other, base, CONFIDENCE))
        ]
        wrong += any(_shown(each) for each in correct_for_multiplicity(family))
    what = f"Holm: any of {methods} methods wrongly shown to differ"
    return Rate(
        what,
        f"{seeds} seeds",
        "all equal the baseline",
        "at most",
        1 - CONFIDENCE,
        wrong / sets,
        sets,
    )


def _shown(difference: SeedDifference) -> bool:
    return difference.corrected is not None and difference.corrected <= 1 - CONFIDENCE


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


def intervals() -> Iterator[Rate]:
    """Yield coverages of intervals of rates, differences and ratios over images, and of
    means over seeds.
    """
    for n in (20, 50, 200, 500):
        yield share_coverage(n)
    for n in (20, 50, 200, 500):
        yield difference_coverage(n, DIFFERENCES if n < 500 else DIFFERENCES[::4])
    for n, rates in product((20, 50, 200), ((0.9, 0.0, 0.02), (0.9, 0.05, 0.05), (0.5, 0.2, 0.1))):
        yield retention_coverage(n, *rates, sets=1000)
    for n, accuracy in (
        (359, (0.95, 0.93, 0.9)),
        (2000, (0.93, 0.92, 0.91)),
        (10_000, (0.933, 0.915, 0.912)),
    ):
        yield gap_coverage(n, accuracy, sets=1000)
    for seeds, (mean, deviation) in product((2, 3, 5), ((0.92, 0.002), (0.9, 0.05), (0.98, 0.014))):
        yield seeds_coverage(seeds, mean, deviation, sets=2000)
    yield holm_error(5, 3, sets=500)


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
