"""Match the student's embedding, after a linear map, to the teacher's."""

from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.embedding import EmbeddingTerm
from kd_app.models.outputs import Outputs


class EmbeddingMse(EmbeddingTerm):
    """``mean (r(f_s) - f_t)^2`` over batch and features, for the embeddings f [B, D]
    before the classifier; r = a linear map, or the identity if the widths are equal and
    `always_project` is false.

    Reads no labels and no logits, so the teacher may have any label space. Same form as
    the feature task of timm's distillation (``timm/task``).
    """

    name: ClassVar[str] = "embedding_mse"

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        return F.mse_loss(*self.pair_embeddings(student, teacher))
