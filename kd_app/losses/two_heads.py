"""What the terms share that teach a student with a classifier of its own for the
teacher's answers.
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
    student with two heads, of which the first learns the labels and the second the
    teacher; the student answers with their mean.
    """

    level: ClassVar[Level] = "output"
    reads: frozenset[str] = frozenset({"embedding", "classifier"})
    name: ClassVar[str]
    """As in ``loss=[...]``."""

    def __init__(self, *, label: Share) -> None:
        super().__init__()
        self.label = label
        self._labels = CrossEntropy(smoothing=0.0, class_weights=None)

    @property
    def teacher_reads(self) -> frozenset[str]:
        """Any teacher will do."""
        return frozenset({"logits"})

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Raises `RequestError` when the student has not two heads."""
        if not isinstance(student.classifier, Head) or len(student.classifier.classifiers) != 2:
            raise RequestError(
                f"{self.name} teaches a second head beside the one for the labels, and the student"
                " has none. Choose a student with a distillation token, such as"
                " deit_tiny_distilled_patch16_224, or another term: soft_target, dist or"
                " embedding_mse."
            )

    def select_heads(
        self, student: Outputs
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        """Logits of the head for the labels and of that for the teacher's answers."""
        assert isinstance(student.classifier, Head)
        assert student.embedding is not None
        first, second = match_precision(student.classifier).apply_each(student.embedding)
        return first, second

    def on_labels(self, logits: Float[Tensor, "batch classes"], batch: Batch) -> Float[Tensor, ""]:
        """The cross-entropy with the labels; 0 where no image has one."""
        value: Tensor = self._labels(Outputs(logits=logits), Outputs(), batch)
        return value
