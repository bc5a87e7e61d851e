"""The latency of a student, compared with the budget before anything is trained."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from kd_app.config import RequestError
from kd_app.deployment.artifact import open_artifact
from kd_app.deployment.export import export
from kd_app.deployment.hardware import describe_machine
from kd_app.run.workspace import Workspace
from kd_app.search.pruning import TrialPruned
from kd_app.specs.latency_budget import LatencyBudget

_NUM_IMAGES: Final = 4


class OverBudgetError(TrialPruned):
    """Ends a trial of a sweep before its training, because the student is too slow."""


def measure_latency(workspace: Workspace, budget: LatencyBudget) -> dict[str, float]:
    """Percentiles of the student's latency (ms).

    The untrained student is measured: the latency does not depend on the weights.
    """
    task = workspace.task
    student = workspace.load_model(workspace.spec.student, seed=0).loaded
    input_spec = student.pixels
    shape = (_NUM_IMAGES, input_spec.channels, input_spec.height, input_spec.width)
    images = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    with TemporaryDirectory() as folder:
        path = export(
            task.wrap_output(student.model),
            budget.format,
            Path(folder),
            stem="student",
            input_spec=input_spec,
            decoding=workspace.decoding,
            classes=workspace.classes,
            output=task.output,
            license="unknown",
            calibration=[images],
            images=images,
        )
        artifact = open_artifact(path, threads=1)
        timings = budget.benchmark.measure({"student": artifact}, {"student": images})
        return timings["student"].latency_ms


def check_latency(
    workspace: Workspace, budget: LatencyBudget, *, is_trial: bool
) -> dict[str, float]:
    """The latency of a student within the budget.

    Raises `OverBudgetError` for a slower student in a trial of a sweep, `RequestError`
    in a single run.
    """
    latency = measure_latency(workspace, budget)
    text = (
        f"the student {workspace.spec.student.name}, exported as {budget.format.name}, has a"
        f" 95th-percentile latency of {latency['p95']:.3g} ms (single images, one thread, on"
        f" {describe_machine()})"
    )
    hint = "To train it, increase budget.latency_ms= or use budget=null."
    if latency["p95"] <= budget.latency_ms:
        workspace.console.print(f"Within budget.latency_ms={budget.latency_ms:g}: {text}.")
        return latency
    over = f"Not trained, since it is over budget.latency_ms={budget.latency_ms:g}: {text}."
    raise OverBudgetError(over, hint) if is_trial else RequestError(f"{over} {hint}")
