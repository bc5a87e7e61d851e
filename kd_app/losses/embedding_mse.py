"""The student's embedding, through a linear map, is to be the teacher's."""

from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.pairing import embeddings
from kd_app.models.outputs import Outputs


class EmbeddingMse(LossTerm):
    """``mean (r(f_s) - f_t)^2`` over batch and features, for the embeddings f [B, D] before the classifier; r = a linear map, or nothing where the
    widths are equal and `always_project` is false.

    Reads no label and no logits, so the teacher may be of any label space. In the form of the feature task of timm's distillation (``timm/task``).
    """

    level: ClassVar[Level] = "feature"
    reads: ClassVar[frozenset[str]] = frozenset({"embedding"})

    adapter: nn.Module

    def __init__(self, *, always_project: bool) -> None:
        super().__init__()
        self.always_project = always_project

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Make the linear map. Raises `RequestError` when one of the models gives no embedding."""
        ours, theirs = embeddings("embedding_mse", student, teacher)
        self.adapter = projection(ours, theirs, always=self.always_project)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The mean squared difference; needs `build` first."""
        ours, theirs = embeddings("embedding_mse", student, teacher)
        return F.mse_loss(self.adapter(ours), theirs)


def projection(ours: Tensor, theirs: Tensor, *, always: bool) -> nn.Module:
    """A linear map from the width of one embedding to that of the other, or nothing where it isn't needed."""
    if ours.shape[1] == theirs.shape[1] and not always:
        return nn.Identity()
    return nn.Linear(ours.shape[1], theirs.shape[1]).to(ours.device)
