"""A model of a run, ready for inference."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from kd_app.deployment.xnnpack import Lowered
from kd_app.models.spec import LoadedModel, ModelSpec
from kd_app.training.job import describe_source


@dataclass(frozen=True)
class RunModel:
    """A model of the run, ready for inference.

    spec: how to build the model again. record: of the model's training; empty if it was
    not trained here. folder: the stage of the training. program: for a quantized model
    the int8 program that is run in place of the module. no_metrics_reason: why this
    model can't be evaluated, as the predicate of a sentence about it; empty if it can.
    Set for teachers with other classes and for EMA teachers.
    """

    role: str
    spec: ModelSpec
    loaded: LoadedModel
    record: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    program: Path | None = None
    no_metrics_reason: str = ""

    def load_runner(self) -> nn.Module:
        """The module that computes the logits: an int8 program in its runtime, or the
        model itself.
        """
        return Lowered(self.program) if self.program else self.loaded.model


def mark_unmeasured(teacher: RunModel) -> RunModel:
    """The teacher as one whose classes are not those of the data."""
    weights = teacher.loaded.weights
    return replace(
        teacher,
        no_metrics_reason=(
            f"from {weights.source} (sha256 {weights.sha256[:16]}), has other classes than the data"
        ),
    )


def describe_reference(model: RunModel) -> dict[str, Any]:
    """Name, source and sha256 of a model, and the stage or folder that contains it."""
    return describe_source(model.spec, model.loaded, model.folder)
