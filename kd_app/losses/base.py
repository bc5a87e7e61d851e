"""The interface of a loss term: fields to read, adapters to build, a scalar to
compute.
"""

import math
from abc import abstractmethod
from typing import ClassVar, Literal, NamedTuple

from jaxtyping import Int64
from torch import Tensor, nn

from kd_app.config import RequestError, Typed
from kd_app.data.batch import Batch
from kd_app.models.outputs import Outputs

Level = Literal["label", "output", "feature", "attention", "relation"]


class TermPart(NamedTuple):
    """A part of a loss term, and where it can teach: with fewer classes, or fewer
    images in a batch, its gradient is zero.

    name: as the object of "without"; empty if it is the whole term. why: the reason for
    `min_classes`, as a sentence without a full stop. fix: an imperative.
    """

    name: str = ""
    min_classes: int = 1
    min_images: int = 1
    why: str = ""
    fix: str = "Use soft_target"


class LossTerm(Typed, nn.Module):
    """One term of the loss: ``(student, teacher, batch) -> scalar``.

    A subclass has a typed, keyword-only ``__init__`` without defaults (the defaults are
    in ``conf/loss/<name>.yaml``), declares the fields that it `reads` from both models,
    and computes in the precision of its inputs, float32 or higher. The weight of the
    term is also in the YAML file and is applied outside.
    """

    level: ClassVar[Level]
    reads: frozenset[str] = frozenset({"logits"})
    """Fields of `Outputs` that the term reads from the student, and from the teacher
    unless `teacher_reads` is overridden. If a setting changes the fields, ``__init__``
    sets them.
    """
    needs_teacher: ClassVar[bool] = True
    uses_labels: ClassVar[bool] = False
    """Whether the term reads labels. It is then the mean over the labeled images, or 0
    (still part of the graph) if no image is labeled. Other terms are the mean over all
    images.
    """
    needs_global_batch: bool = False
    """Whether the term compares images with each other. It then gets the images of all
    ranks, so that two ranks of 32 images give the same value as one rank of 64. False
    for a term that is a mean over images. If a setting decides it, ``__init__`` sets
    it.
    """

    label_temperature: float | None = None
    """Temperature of the softened class probabilities, set in ``__init__``. None if the
    term softens none, or uses several temperatures or a learned one.
    """

    images: Int64[Tensor, " images"] | None = None
    """Ascending indices of the training images, as in `Batch.index`; None if the images
    have no indices. Set before `build` is called.
    """

    @property
    def teacher_reads(self) -> frozenset[str]:
        """The fields that the term reads from the teacher."""
        return self.reads

    @property
    def teacher_temperature(self) -> float | None:
        """The temperature T if the term reads nothing of the teacher's logits z but the
        probabilities softmax(z / T), so that they can be stored in place of z; None if
        it reads the logits, or probabilities at other temperatures, too.
        """
        return None

    @property
    def attention_blocks(self) -> int:
        """For terms that read attention: the number of last blocks of the teacher to
        read. From the student only the last block is read.
        """
        return 1

    def list_parts(self) -> tuple[TermPart, ...]:
        """The parts of the term that its settings turn on, with the numbers of classes
        and of images for which they are defined.
        """
        return (TermPart(),)

    def check_scope(self, *, num_classes: int, num_images: int | None = None) -> str:
        """Return a warning if a part of the term is void for these numbers of classes
        and of images in a batch (None: unknown), or "".

        Raises `RequestError` if the whole term is void.
        """
        parts = self.list_parts()
        void = [
            part
            for part in parts
            if num_classes < part.min_classes or (num_images or math.inf) < part.min_images
        ]
        if not void and parts:
            return ""
        name = type(self).__module__.rpartition(".")[2]
        if not parts:
            raise RequestError(
                f"All parts of the loss term {name} have weight 0, so it teaches nothing. Expected:"
                " a weight above 0. Leave the term out, or set a weight."
            )
        first = void[0]
        if num_classes < first.min_classes:
            reason = f"with {num_classes} classes: {first.why}. Expected: at least"
            reason += f" {first.min_classes} classes. {first.fix}."
        else:
            reason = f"with batches of {num_images} image(s), because it compares images. Expected:"
            reason += f" at least {first.min_images}. Raise data.batch_size."
        if len(void) == len(parts):
            raise RequestError(f"The loss term {name} teaches nothing {reason}")
        return f"The loss term {name} is used without {first.name}, which teaches nothing {reason}"

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Build the adapters from the outputs of both models for one batch (real shapes
        and values, any device).

        Raises `RequestError` if the term can't compare this pair of models, with the
        reason and alternatives. By default there are no adapters.
        """

    def wrap_student(self, student: nn.Module) -> nn.Module:
        """Return the model to train, validate and ship: the student, or a wrapper with
        an adapter that is part of the student. Called after `build`.
        """
        return student

    @abstractmethod
    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the mean over the batch, a scalar with a gradient for the student (and
        the adapters).
        """
