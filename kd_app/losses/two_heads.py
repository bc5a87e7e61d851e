"""Base class of the terms for students with a second classifier that learns the
teacher's predictions.
"""

from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kd_app.config import RequestError
from kd_app.data.batch import Batch
from kd_app.losses.adapters import match_precision
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.cross_entropy import CrossEntropy
from kd_app.models.heads import Head
from kd_app.models.outputs import Outputs

Share = Annotated[float, Field(ge=0, le=1)]


class TwoHeads(LossTerm):
    """``label x CE(z_class, y) + (1 - label) x distance(z_distilled, z_t)`` for a
    student with two heads: the first learns the labels, the second the teacher's
    predictions. The student's logits are the mean of both.
    """

    level: ClassVar[Level] = "output"
    reads: frozenset[str] = frozenset({"embedding", "classifier"})
    name: ClassVar[str]
    """Name in ``loss=[...]``."""

    def __init__(self, *, label: Share) -> None:
        super().__init__()
        self.label = label
        self._labels = CrossEntropy(smoothing=0.0, class_weights=None)

    @property
    def teacher_reads(self) -> frozenset[str]:
        return frozenset({"logits"})

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Raises `RequestError` if the student does not have two heads."""
        if not isinstance(student.classifier, Head) or len(student.classifier.classifiers) != 2:
            raise RequestError(
                f"{self.name} trains a second head on the teacher's predictions, but the student"
                " has only one head. Choose a student with a distillation token, such as"
                " deit_tiny_distilled_patch16_224, or another term: soft_target, dist or"
                " embedding_mse."
            )

    def select_heads(
        self, student: Outputs
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        """Return the logits of the label head and of the distillation head."""
        assert isinstance(student.classifier, Head)
        assert student.embedding is not None
        first, second = match_precision(student.classifier).apply_each(student.embedding)
        return first, second

    def compute_label_loss(
        self, logits: Float[Tensor, "batch classes"], batch: Batch
    ) -> Float[Tensor, ""]:
        """Return the cross-entropy with the labels; 0 if no image is labeled."""
        value: Tensor = self._labels(Outputs(logits=logits), Outputs(), batch)
        return value
