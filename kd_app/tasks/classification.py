"""The task of classification: one of K classes for each image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Final

from torch import Tensor, nn

from kd_app.data.batch import Batch
from kd_app.data.targets import check_target
from kd_app.metrics.classification import build_model_metrics
from kd_app.metrics.model_metrics import MODEL_METRICS
from kd_app.metrics.pair import build_pair_metrics
from kd_app.metrics.pair_metrics import PAIR_METRICS
from kd_app.models.outputs import Outputs
from kd_app.models.spec import ModelSpec
from kd_app.tasks.base import Direction, Metrics, Output, ReadsOutputs, Reference, Selection


@cache
def _list_metrics(*, has_teacher: bool) -> Mapping[str, Direction]:
    names = set(build_model_metrics(2)) | (set(build_pair_metrics()) if has_teacher else set())
    directions = {
        **{spec.name: spec.better for spec in MODEL_METRICS},
        **{spec.name: spec.better for spec in PAIR_METRICS},
    }
    return {name: better for name, better in directions.items() if name in names}


@dataclass(frozen=True)
class Classification:
    """Logits ``[B, K]``, measured against labels and the teacher's logits."""

    name: ClassVar[str] = "classification"
    reads_labels: ClassVar[bool] = True
    output: ClassVar[Output] = "logits"
    selection: ClassVar[Selection] = Selection("top1", "nll")
    parts: ClassVar[tuple[str, ...]] = ("validation", "test", "verdict", "knowledge", "cascade")
    progress: ClassVar[tuple[str, ...]] = ("top1", "nll", "agreement")

    def list_metrics(self, *, has_teacher: bool) -> Mapping[str, Direction]:
        return _list_metrics(has_teacher=has_teacher)

    def wrap_output(self, model: nn.Module) -> nn.Module:
        return model

    def count_own_outputs(self, classes: Sequence[str]) -> int:
        return len(classes)

    def count_outputs(self, classes: Sequence[str], role: str) -> int:
        return len(classes)

    def bind_model(self, model: ModelSpec, classes: Sequence[str]) -> None:
        model.bind_classes(tuple(classes))

    def bind_teacher(self, width: int) -> "Classification":
        return self

    def map_reads(self, reads: frozenset[str]) -> frozenset[str]:
        return reads

    def map_outputs(self, outputs: Outputs) -> Outputs:
        return outputs

    def check_loss(self, terms: Mapping[str, ReadsOutputs], owner: str) -> None:
        """Every term suits classification."""

    def check_batch(self, batch: Batch, num_outputs: int) -> None:
        check_target(batch.target, batch.labeled, num_outputs, where="train")

    def build_metrics(self, num_outputs: int) -> Metrics:
        return build_model_metrics(num_outputs)

    def build_pair_metrics(self) -> Metrics:
        return build_pair_metrics()

    def update_metrics(
        self,
        metrics: Metrics,
        pair_metrics: Metrics | None,
        output: Tensor,
        batch: Batch,
        reference: Reference | None,
    ) -> None:
        targets = batch.to_hard_target()
        metrics.update(output, targets)
        if pair_metrics is not None and reference is not None:
            pair_metrics.update(output, reference.select(batch.index), targets)

    def describe_plan(self, teacher: ModelSpec | None) -> str:
        return ""

    def describe_identity(self) -> dict[str, Any]:
        return {}

    def describe_model(self) -> dict[str, Any]:
        return {}

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name}


CLASSIFICATION: Final = Classification()
