"""Checks that the trainings of a run are long enough to teach anything."""

import math
from collections.abc import Iterator

from kd_app.checks.context import CheckContext
from kd_app.checks.finding import Finding, note
from kd_app.training.timing import count_steps_per_epoch

_FEW_STEPS = 200


def check_few_steps(context: CheckContext) -> Iterator[Finding]:
    """Note that student, or a teacher that is trained, have a training of few steps."""
    spec, data = context.workspace.spec, context.workspace.data
    epochs = {"student": spec.recipe.max_epochs}
    if spec.teacher_recipe is not None and context.trains_teacher:
        epochs["teacher"] = spec.teacher_recipe.max_epochs
    batches = count_steps_per_epoch(data, spec.trainer).training
    steps = math.ceil(batches / spec.trainer.accumulate_grad_batches)
    few = [
        f"the {role} {steps * number:,}"
        for role, number in epochs.items()
        if steps * number < _FEW_STEPS
    ]
    if few:
        yield note(
            "few-steps",
            f"The training has few steps: {', '.join(few)} ({steps:,} in an epoch). Models that"
            " start from random weights need hundreds of steps or more. Raise trainer.max_epochs"
            " (and teacher.max_epochs), or lower data.batch_size.",
        )
