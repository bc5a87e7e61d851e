"""The latency budget of a student, checked before anything is trained."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from pydantic import PositiveFloat

from kd_app.config import RequestError, Typed
from kd_app.deployment.artifact import open_artifact
from kd_app.deployment.export import export
from kd_app.deployment.formats.base import Format
from kd_app.deployment.hardware import describe_machine
from kd_app.deployment.timing import Benchmark
from kd_app.search.pruning import TrialPruned

if TYPE_CHECKING:
    from kd_app.run.workspace import Workspace

_NUM_IMAGES = 4


class OverBudgetError(TrialPruned):
    """Ends a trial of a sweep before its training, because the student is too slow."""


class LatencyBudget(Typed, called="budget"):
    """The highest 95th percentile of latency (ms) of the student as a file in `format`,
    for single images on one thread.
    """

    def __init__(self, *, latency_ms: PositiveFloat, format: Format, benchmark: Benchmark) -> None:
        self.latency_ms = latency_ms
        self.format = format
        self.benchmark = benchmark

    def measure_latency(self, workspace: "Workspace") -> dict[str, float]:
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
                self.format,
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
            timings = self.benchmark.measure({"student": artifact}, {"student": images})
            return timings["student"].latency_ms

    def check(self, workspace: "Workspace", *, trial: bool) -> dict[str, float]:
        """The latency of a student within the budget.

        Raises `OverBudgetError` for a slower student in a `trial` of a sweep,
        `RequestError` in a single run.
        """
        latency = self.measure_latency(workspace)
        text = (
            f"the student {workspace.spec.student.name}, exported as {self.format.name}, has a"
            f" 95th-percentile latency of {latency['p95']:.3g} ms (single images, one thread, on"
            f" {describe_machine()})"
        )
        hint = "To train it, increase budget.latency_ms= or use budget=null."
        if latency["p95"] <= self.latency_ms:
            workspace.console.print(f"Within budget.latency_ms={self.latency_ms:g}: {text}.")
            return latency
        over = f"Not trained, since it is over budget.latency_ms={self.latency_ms:g}: {text}."
        raise OverBudgetError(over, hint) if trial else RequestError(f"{over} {hint}")
