"""How often intervals of metrics contain a true value that is known. Part of ``make
verdict``
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float
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

CONFIDENCE = 0.95
DIFFERENCES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
"""True differences at which the coverage of paired intervals is computed."""


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
        wrong += any(_is_shown(each) for each in correct_for_multiplicity(family))
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


def _is_shown(difference: SeedDifference) -> bool:
    return difference.corrected is not None and difference.corrected <= 1 - CONFIDENCE


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
