"""The student's embedding, through a linear map, is to point where the teacher's does."""

from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.embedding_mse import projection
from kd_app.losses.pairing import embeddings
from kd_app.models.outputs import Outputs


class EmbeddingCosine(LossTerm):
    """``mean_b 1 - cos(r(f_s), f_t)`` for the embeddings f [B, D] before the classifier; r = a linear map, or nothing where the widths are equal and
    `always_project` is false.

    Reads no label and no logits, so the teacher may be of any label space, and its length does not matter.
    """

    level: ClassVar[Level] = "feature"
    reads: ClassVar[frozenset[str]] = frozenset({"embedding"})

    adapter: nn.Module

    def __init__(self, *, always_project: bool) -> None:
        super().__init__()
        self.always_project = always_project

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Make the linear map. Raises `RequestError` when one of the models gives no embedding."""
        ours, theirs = embeddings("embedding_cosine", student, teacher)
        self.adapter = projection(ours, theirs, always=self.always_project)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The mean over the batch, 0 to 2; needs `build` first."""
        ours, theirs = embeddings("embedding_cosine", student, teacher)
        return 1 - F.cosine_similarity(self.adapter(ours), theirs).mean()
