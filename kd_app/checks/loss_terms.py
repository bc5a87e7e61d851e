"""Does every loss term teach, and does the student learn: seen in a short training."""

import math
from collections.abc import Iterator, Sequence

from kd_app.checks.context import CheckContext
from kd_app.checks.dry_run import DryRun
from kd_app.checks.finding import Finding, note, refuse, warn


def check_loss_terms(subject: CheckContext, rehearsals: Sequence[DryRun]) -> Iterator[Finding]:
    """A term that is zero, not finite or without gradient; one that leaves the others
    no gradient; a training that ends or teaches nothing.
    """
    yield from _find_unweighted(subject)
    for seen in rehearsals:
        yield from (
            refuse(f"term-{fault.kind}", f"{seen.role}: {fault.text}") for fault in seen.faults
        )
        if seen.error and not any(fault.text == seen.error for fault in seen.faults):
            yield refuse("training", f"{seen.role}: {seen.error}")
        yield from _find_dominant(subject, seen)
        if not seen.error and not seen.after < (1 - subject.limits.min_loss_drop) * seen.before:
            yield warn("learns-nothing", f"The {seen.role} does not learn: its loss on its first batch was {seen.before:.4g} and is "
                          f"{seen.after:.4g} after {seen.steps} steps. Look at optimizer.lr.")  # fmt: skip


def _find_unweighted(subject: CheckContext) -> Iterator[Finding]:
    for name, weight in subject.shop.spec.recipe.loss_weights.items():
        if weight == 0:
            yield refuse(
                "term-zero",
                f"The loss term {name} has the weight 0, so it teaches nothing. Leave it out, or"
                f" set loss.{name}.weight.",
            )


def _find_dominant(subject: CheckContext, seen: DryRun) -> Iterator[Finding]:
    if len(seen.shares) < 2:
        return
    if (
        seen.role == "student"
        and subject.teacher is None
        and subject.shop.spec.teacher is not None
        and not subject.unmeasured
    ):
        yield note(
            "term-dominates", "How much each term weighs is seen when the teacher is trained."
        )
        return
    name, share = max(seen.shares.items(), key=lambda item: item[1])
    if share > subject.limits.max_gradient_share and not math.isnan(share):
        yield warn(
            "term-dominates",
            f"The loss term {name} has {share:.1%} of the {seen.role}'s gradient in the first"
            f" steps, so the others hardly count. Lower loss.{name}.weight, or leave the others"
            " out.",
        )
