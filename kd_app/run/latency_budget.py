"""What a student may cost, looked at before anything is trained."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

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

_IMAGES = 4


class OverBudgetError(TrialPruned):
    """The trial was ended before it was trained: its student costs more than it may."""


class LatencyBudget(Typed, called="budget"):
    """Milliseconds within which 95 of 100 images are answered, one at a time with one
    thread, by the student as a file in `format`.
    """

    def __init__(self, *, latency_ms: PositiveFloat, format: Format, benchmark: Benchmark) -> None:
        self.latency_ms = latency_ms
        self.format = format
        self.benchmark = benchmark

    def latency(self, shop: "Workspace") -> dict[str, float]:
        """Percentiles of the untrained student's latency in milliseconds: what it takes
        does not depend on what it learned.
        """
        created = shop.load_model(shop.spec.student, seed=0).loaded
        pixels = created.pixels
        images = np.random.default_rng(0).integers(
            256, size=(_IMAGES, pixels.channels, pixels.height, pixels.width), dtype=np.uint8
        )
        with TemporaryDirectory() as folder:
            about: dict[str, Any] = {
                "stem": "student",
                "pixels": pixels,
                "classes": shop.classes,
                "license": "unknown",
            }
            path = export(
                created.model,
                self.format,
                Path(folder),
                calibration=[images],
                images=images,
                **about,
            )
            return self.benchmark.measure(
                {"student": open_artifact(path, threads=1)}, {"student": images}
            )["student"].latency_ms

    def check(self, shop: "Workspace", *, trial: bool) -> dict[str, float]:
        """The latency of a student within the budget. Raises `OverBudgetError` for one
        above it in a sweep, `RequestError` alone.
        """
        found = self.latency(shop)
        said = (
            f"the student {shop.spec.student.name}, written as {self.format.name}, answers 95 of"
            f" 100 images within {found['p95']:.3g} ms, one at a time with one thread on"
            f" {describe_machine()}"
        )
        hint = "A larger budget.latency_ms=, or budget=null, trains it."
        if found["p95"] <= self.latency_ms:
            shop.console.print(f"Within budget.latency_ms={self.latency_ms:g}: {said}.")
            return found
        over = f"Not trained, since it is over budget.latency_ms={self.latency_ms:g}: {said}."
        raise OverBudgetError(over, hint) if trial else RequestError(f"{over} {hint}")
