"""`Task`, the interface between what is learned and the code that trains and measures
it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from kd_app.data.batch import Batch
from kd_app.models.outputs import Outputs
from kd_app.models.spec import ModelSpec


class Selection(NamedTuple):
    """What the best epoch is: the highest `metric`; the lowest `tie_break` decides
    between equal ones. Both are names of validation metrics.
    """

    metric: str
    tie_break: str


class Reference(Protocol):
    """The teacher's outputs for the validation images."""

    def select(self, index: Tensor) -> Tensor:
        """Return ``[B, K]``: the outputs for the images with these numbers."""


class ReadsOutputs(Protocol):
    """What a task reads of a loss term."""

    @property
    def reads(self) -> frozenset[str]:
        """The fields of `Outputs` that the term reads from the student."""

    @property
    def teacher_reads(self) -> frozenset[str]:
        """The fields that the term reads from the teacher."""

    @property
    def uses_labels(self) -> bool:
        """Whether the term reads labels."""


Output = Literal["logits", "embedding"]
Metrics = MetricCollection | Metric
Direction = Literal["higher", "lower"]
"""Which values of a metric are better."""


class Task(Protocol):
    """What a model learns and how it is measured in training."""

    @property
    def name(self) -> str:
        """The value of ``task=``."""

    @property
    def reads_labels(self) -> bool:
        """Whether models are trained and compared on labels. Otherwise labels, if there
        are any, only judge.
        """

    @property
    def selection(self) -> Selection:
        """What the best epoch is."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The keys of results.json that hold the metrics of this task alone."""

    @property
    def progress(self) -> tuple[str, ...]:
        """The validation metrics that the console shows after an epoch."""

    def list_metrics(self, *, has_teacher: bool) -> Mapping[str, Direction]:
        """Return the validation metrics that a callback can monitor."""

    @property
    def output(self) -> Output:
        """What an exported file returns for an image."""

    def wrap_output(self, model: nn.Module) -> nn.Module:
        """Return the model that an exported file holds."""

    def count_own_outputs(self, classes: Sequence[str]) -> int:
        """Return the width of the output of a model that is used as it is; 0: that of
        its embedding.
        """

    def count_outputs(self, classes: Sequence[str], role: str) -> int:
        """Return the width of the output of a role's model; 0: without a head, as wide
        as its embedding.
        """

    def bind_model(self, model: ModelSpec, classes: Sequence[str]) -> None:
        """Match the outputs of a model's weights to the data."""

    def bind_teacher(self, width: int) -> "Task":
        """Return the task for a teacher whose output has this width."""

    def map_reads(self, reads: frozenset[str]) -> frozenset[str]:
        """Return the fields of `Outputs` to read from a model for these fields."""

    def map_outputs(self, outputs: Outputs) -> Outputs:
        """Return the outputs that loss terms read."""

    def check_loss(self, terms: Mapping[str, ReadsOutputs], owner: str) -> None:
        """Raise `RequestError` for a loss term that this task has no outputs for."""

    def check_batch(self, batch: Batch, num_outputs: int) -> None:
        """Raise `RequestError` for targets that can't be learned."""

    def build_metrics(self, num_outputs: int) -> Metrics:
        """Build the validation metrics of one model."""

    def build_pair_metrics(self) -> Metrics | None:
        """Build the validation metrics of student and teacher, if they are others."""

    def update_metrics(
        self,
        metrics: Metrics,
        pair_metrics: Metrics | None,
        output: Tensor,
        batch: Batch,
        reference: Reference | None,
    ) -> None:
        """Add the outputs ``[B, K]`` of a validation batch to the metrics."""

    def describe_plan(self, teacher: ModelSpec | None) -> str:
        """Return a line of the plan about what is learned; empty if it needs none."""

    def describe_identity(self) -> dict[str, Any]:
        """Return what else decides the trained weights, for the key of a stage."""

    def describe_model(self) -> dict[str, Any]:
        """Return entries for the config.json of a trained model."""

    def to_json(self) -> dict[str, Any]:
        """Return the arguments of the task and its name as plain data."""
