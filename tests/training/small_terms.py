"""Loss terms whose values and gradients are known, and outputs for them to compare."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm
from kd_app.models.outputs import Outputs


class Labels(LossTerm):
    """``factor`` times the mean logit; needs no teacher."""

    level: ClassVar[Level] = "label"
    needs_teacher: ClassVar[bool] = False

    def __init__(self, *, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert student.logits is not None
        return self.factor * student.logits.mean()


class Distance(LossTerm):
    """``factor`` times the mean squared distance of the logits."""

    level: ClassVar[Level] = "output"

    def __init__(self, *, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert student.logits is not None
        assert teacher.logits is not None
        return self.factor * F.mse_loss(student.logits, teacher.logits)


class Cut(Distance):
    """A faulty term: ``detach`` cuts the graph."""

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return super().forward(student, teacher, batch).detach()


class Adapted(LossTerm):
    """Compare adapted embeddings; with `reaches` the student gets a gradient, else only
    the adapter.
    """

    level: ClassVar[Level] = "feature"
    reads: frozenset[str] = frozenset({"embedding"})

    def __init__(self, *, reaches: bool) -> None:
        super().__init__()
        self.reaches = reaches
        self.adapter: nn.Module = nn.Identity()

    @property
    def attention_blocks(self) -> int:
        return 3

    def build(self, student: Outputs, teacher: Outputs) -> None:
        assert student.embedding is not None
        assert teacher.embedding is not None
        self.adapter = nn.Linear(student.embedding.shape[1], teacher.embedding.shape[1])

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert student.embedding is not None
        assert teacher.embedding is not None
        return F.mse_loss(
            self.adapter(student.embedding if self.reaches else student.embedding.detach()),
            teacher.embedding,
        )


class Flat(Distance):
    """A faulty term: connected to the graph, but with zero gradient."""

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert student.logits is not None
        return 1 + 0 * student.logits.sum()


def draw_normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(size: int = 6) -> Batch:
    return Batch(draw_normal(size, 4), torch.arange(size) % 3, torch.arange(size))


def student() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def answers(model: nn.Linear, images: Batch) -> tuple[Outputs, Outputs]:
    """The outputs of the student, with a graph, and of the teacher, without."""
    outputs = Outputs(logits=model(images.image), embedding=torch.tanh(model(images.image)))
    return outputs, Outputs(
        logits=draw_normal(len(images), 3, seed=1), embedding=draw_normal(len(images), 5, seed=2)
    )
