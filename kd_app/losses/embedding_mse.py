"""The student's embedding, through a linear map, is to be the teacher's."""

from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.embedding import EmbeddingTerm
from kd_app.models.outputs import Outputs


class EmbeddingMse(EmbeddingTerm):
    """``mean (r(f_s) - f_t)^2`` over batch and features, for the embeddings f [B, D]
    before the classifier; r = a linear map, or nothing where the widths are equal and
    `always_project` is false.

    Reads no label and no logits, so the teacher may be of any label space. In the form
    of the feature task of timm's distillation (``timm/task``).
    """

    name: ClassVar[str] = "embedding_mse"

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The mean squared difference; needs `build` first."""
        return F.mse_loss(*self.pair_embeddings(student, teacher))
