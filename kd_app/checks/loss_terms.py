"""Checks in the dry runs that every loss term teaches and that the student learns."""

import math
from collections.abc import Iterator, Sequence

from kd_app.checks.context import CheckContext
from kd_app.checks.dry_run import DryRun
from kd_app.checks.finding import Finding, note, refuse, warn

_FEWEST_STEPS, _FEWEST_STEPS_RANDOM = 30, 100
"""Steps after which a loss that did not fall is reported: of a net with pretrained
weights, and of one with random weights, which falls late or rises at first.
"""


def check_loss_terms(context: CheckContext, dry_runs: Sequence[DryRun]) -> Iterator[Finding]:
    """Find loss terms that are zero, not finite or without gradient, terms that
    dominate the others, and trainings that fail or do not lower the loss.
    """
    yield from _find_unweighted(context)
    for result in dry_runs:
        for fault in result.faults:
            yield refuse(f"term-{fault.kind}", f"{result.role}: {fault.text}")
        if result.error and not any(fault.text == result.error for fault in result.faults):
            yield refuse("training", f"{result.role}: {result.error}")
        yield from _find_dominant(context, result)
        max_loss = (1 - context.limits.min_loss_drop) * result.before
        fewest = _FEWEST_STEPS_RANDOM if result.from_random else _FEWEST_STEPS
        # Also true for a loss that is NaN.
        if not result.error and result.steps >= fewest and not result.after < max_loss:
            yield warn(
                "learns-nothing",
                f"The {result.role} does not learn: its loss on its first batch was"
                f" {result.before:.4g} and is {result.after:.4g} after {result.steps} steps."
                " Check optimizer.lr.",
            )


def _find_unweighted(context: CheckContext) -> Iterator[Finding]:
    for name, weight in context.workspace.spec.recipe.loss_weights.items():
        if weight == 0:
            yield refuse(
                "term-zero",
                f"The loss term {name} has weight 0, so it teaches nothing. Leave it out, or set"
                f" loss.{name}.weight.",
            )


def _find_dominant(context: CheckContext, result: DryRun) -> Iterator[Finding]:
    if len(result.shares) < 2:
        return
    if (
        result.role == "student"
        and context.teacher is None
        and context.workspace.spec.teacher is not None
        and not context.is_unmeasured
    ):
        yield note(
            "term-dominates",
            "The weight of each loss term can only be judged with a trained teacher.",
        )
        return
    name, share = max(result.shares.items(), key=lambda item: item[1])
    if share > context.limits.max_gradient_share and not math.isnan(share):
        yield warn(
            "term-dominates",
            f"The loss term {name} has {share:.1%} of the {result.role}'s gradient in the first"
            f" steps, so the others hardly count. Lower loss.{name}.weight, or leave the others"
            " out.",
        )
