"""The task of embedding: images that are near each other for the teacher are near each
other for the student. No label is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Final

from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.data.batch import Batch
from kd_app.metrics.embedding_training import EmbeddingAgreement
from kd_app.models.class_names import ClassMatch
from kd_app.models.normalized import NormalizedEmbedding
from kd_app.models.outputs import EnsembleOutputs, Outputs
from kd_app.models.save import EMBEDDING
from kd_app.models.spec import ModelSpec
from kd_app.tasks.base import Direction, Metrics, Output, ReadsOutputs, Reference, Selection

RANDOM: Final = "random"
"""The role of the student's net with random weights."""
_HEADLESS: Final = ("teacher", "untouched", RANDOM)
"""Roles of models that are used without training."""
_FOR_CLASSES: Final = frozenset({"logits", "classifier"})
_ALTERNATIVES: Final = (
    "Terms that read embeddings, maps or tokens: embedding_cosine, embedding_mse, pkt, rkd, sp."
)


@dataclass(frozen=True)
class Embedding:
    """Embeddings ``[B, D]``: the teacher's pooled output without a head, and the
    student's after a linear projector of the same width, which timm keeps as its
    classifier.

    width: of the teacher's embedding, 0 before it is known. k: neighbors of an image.
    """

    name: ClassVar[str] = "embedding"
    reads_labels: ClassVar[bool] = False
    output: ClassVar[Output] = "embedding"
    selection: ClassVar[Selection] = Selection("overlap", "distance")
    parts: ClassVar[tuple[str, ...]] = ("embedding",)
    progress: ClassVar[tuple[str, ...]] = ("overlap", "distance")
    k: int = 10
    width: int = 0

    def list_metrics(self, *, has_teacher: bool) -> Mapping[str, Direction]:
        """Purity is there if labels judge."""
        names = ("overlap", "effective_rank", "purity")
        return {"distance": "lower", **dict.fromkeys(names, "higher")}

    def wrap_output(self, model: nn.Module) -> nn.Module:
        return NormalizedEmbedding(model)

    def count_own_outputs(self, classes: Sequence[str]) -> int:
        return 0

    def count_outputs(self, classes: Sequence[str], role: str) -> int:
        """0 for a model that is not trained here; else the width of the teacher's
        embedding.
        """
        if role in _HEADLESS:
            return 0
        assert self.width > 0, "bind_teacher comes first"
        return self.width

    def bind_model(self, model: ModelSpec, classes: Sequence[str]) -> None:
        """The classes of the weights do not matter: a teacher loses its head, a student
        gets a projector.

        Raises `RequestError` for a teacher with random weights.
        """
        is_teacher = model.role == "teacher"
        if is_teacher and not model.origin.has_weights:
            raise RequestError(
                f"The teacher {model.name} has random weights, so its embedding says nothing about"
                " images, and task=embedding trains no teacher. Expected: pretrained weights. Name"
                " a model with a tag (teacher.name=resnet50.a1_in1k), or weights of your own"
                " (teacher.checkpoint=<file or folder>)."
            )
        if is_teacher:
            model.bind_embedding()
        else:
            model.match = ClassMatch(fits=False, reason="learns an embedding")

    def bind_teacher(self, width: int) -> "Embedding":
        return replace(self, width=width)

    def map_reads(self, reads: frozenset[str]) -> frozenset[str]:
        """The embedding is the output of either model."""
        return (reads - {"embedding"}) | {"logits"}

    def map_outputs(self, outputs: Outputs) -> Outputs:
        if isinstance(outputs, EnsembleOutputs):
            members = {name: self.map_outputs(each) for name, each in outputs.members.items()}
            outputs = replace(outputs, members=members)
        return replace(outputs, embedding=outputs.logits)

    def check_loss(self, terms: Mapping[str, ReadsOutputs], owner: str) -> None:
        """Raise `RequestError` for a term that reads labels, logits or a classifier."""
        for name, term in terms.items():
            fields = (term.reads | term.teacher_reads) & _FOR_CLASSES
            what = "labels" if term.uses_labels else " and ".join(sorted(fields))
            if what:
                raise RequestError(
                    f"The loss term {name} of the {owner} reads {what}, and task=embedding has"
                    f" none. {_ALTERNATIVES} Choose them with 'loss=[embedding_cosine]', or, for"
                    " images with classes, set task=classification."
                )

    def check_batch(self, batch: Batch, num_outputs: int) -> None:
        """No target is read."""

    def build_metrics(self, num_outputs: int) -> Metrics:
        return EmbeddingAgreement(self.k)

    def build_pair_metrics(self) -> None:
        """The metrics of the student are those of student and teacher."""

    def update_metrics(
        self,
        metrics: Metrics,
        pair_metrics: Metrics | None,
        output: Tensor,
        batch: Batch,
        reference: Reference | None,
    ) -> None:
        assert reference is not None, "the student is compared with the teacher"
        metrics.update(output, reference.select(batch.index), batch.index, batch.target)

    def describe_plan(self, teacher: ModelSpec | None) -> str:
        """Name the teacher's embedding and how the student is measured."""
        if teacher is None:
            return ""
        return (
            f"Embedding: {teacher.describe_embedding()} ({self.width:,} numbers), learned behind a"
            f" linear projector; measured by the {self.k} nearest training images of each held-out"
            " image"
        )

    def describe_identity(self) -> dict[str, Any]:
        """The number of neighbors decides the best epoch."""
        return {"task": self.to_json()}

    def describe_model(self) -> dict[str, Any]:
        return {EMBEDDING: {"width": self.width}}

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}
