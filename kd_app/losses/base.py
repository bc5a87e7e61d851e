"""The contract of a loss term: what it reads, what it adapts, and one number."""

from abc import abstractmethod
from typing import ClassVar, Literal

from jaxtyping import Int64
from torch import Tensor, nn

from kd_app.config import Typed
from kd_app.data.batch import Batch
from kd_app.models.outputs import Outputs

Level = Literal["label", "output", "feature", "attention", "relation"]


class LossTerm(Typed, nn.Module):
    """One term of the loss: ``(student, teacher, batch) -> scalar``.

    A subclass has a typed, keyword-only ``__init__`` without defaults (they stand in
    ``conf/loss/<name>.yaml``), says what it `reads` of both models, and computes in the
    precision of its inputs, which is float32 or better. Its weight, too, stands in the
    YAML and is applied outside.
    """

    level: ClassVar[Level]
    reads: frozenset[str] = frozenset({"logits"})
    """Names of the fields of `Outputs` that the term needs, of the student and, where
    `teacher_reads` says nothing else, of the teacher. A setting that changes them sets
    them on the term.
    """
    needs_teacher: ClassVar[bool] = True
    uses_labels: ClassVar[bool] = False
    """Whether it reads labels: it is then the mean over the images that have one, and 0
    where none has, still joined to the graph. Every other term is the mean over all
    images.
    """
    needs_global_batch: ClassVar[bool] = False
    """Where it compares images with each other: it is given the images of all ranks
    then, so that two ranks of 32 images say what one of 64 says. A term that is a mean
    over images leaves it False.
    """

    label_temperature: float | None = None
    """The temperature at which the term softens class probabilities, set in ``__init__``;
    None if it softens none, or at several temperatures or a learned one.
    """

    images: Int64[Tensor, " images"] | None = None
    """The numbers of the images to train on, ascending, as in `Batch.index`; None where
    nobody numbers them. Known when `build` is called.
    """

    @property
    def teacher_reads(self) -> frozenset[str]:
        """The fields that it needs of the teacher."""
        return self.reads

    @property
    def attention_blocks(self) -> int:
        """Where it reads attention: of how many of the teacher's last blocks. Of the
        student's it is given the last one.
        """
        return 1

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Make the adapters from one measured pass of both models (shapes and values of
        a real batch, any device).

        Raises `RequestError` when the term can't apply to this pair: why, and which
        terms can. The default has no adapter.
        """

    def wrap_student(self, student: nn.Module) -> nn.Module:
        """The model that is trained, validated and shipped: the student itself, unless
        an adapter of the term is a part of it. After `build`.
        """
        return student

    @abstractmethod
    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The mean over the batch, as a scalar that has a gradient for the student (and
        the adapters).
        """
