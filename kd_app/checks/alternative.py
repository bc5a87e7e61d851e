"""Another input or class order with which a teacher may be right on more images."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from kd_app.checks.context import PASSES, Limits


@dataclass(frozen=True)
class InputAlternative:
    """Where the teacher is right with another input or class order, and how to fix the
    teacher. name: of the finding. change: what differs from the configured input.
    before, hits: whether it is right for each image with the configured input, and with
    this one. chance: the accuracy that the alternative reaches without any knowledge.
    outputs: for each class of the data the number of the teacher's output, if the
    images decide it.
    """

    name: str
    change: str
    fix: str
    before: Bool[np.ndarray, " images"]
    hits: Bool[np.ndarray, " images"]
    chance: float = 0.0
    outputs: tuple[int, ...] | None = None

    def is_better(self, limits: Limits) -> bool:
        """Whether the teacher is significantly and clearly better with it."""
        share = float(self.hits.mean())
        return (
            # Bonferroni: up to PASSES alternatives are tested.
            compute_p_value(self.before, self.hits) * PASSES < limits.significance
            and share - self.before.mean() >= limits.min_gain
            and share - self.chance >= limits.min_gain
        )


def compute_p_value(
    before: Bool[np.ndarray, " images"], after: Bool[np.ndarray, " images"]
) -> float:
    """One-sided exact McNemar test: that no more images become right than wrong."""
    from scipy.stats import binomtest

    better, worse = int((after & ~before).sum()), int((before & ~after).sum())
    if better + worse == 0:
        return 1.0
    return float(binomtest(better, better + worse, alternative="greater").pvalue)
