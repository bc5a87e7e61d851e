"""The student's embedding, through a linear map, is to point where the teacher's does."""

from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.embedding import EmbeddingTerm
from kd_app.models.outputs import Outputs


class EmbeddingCosine(EmbeddingTerm):
    """``mean_b 1 - cos(r(f_s), f_t)`` for the embeddings f [B, D] before the
    classifier; r = a linear map, or nothing where the widths are equal and
    `always_project` is false.

    Reads no label and no logits, so the teacher may be of any label space, and its
    length does not matter.
    """

    name: ClassVar[str] = "embedding_cosine"

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The mean over the batch, 0 to 2; needs `build` first."""
        return 1 - F.cosine_similarity(*self.pair_embeddings(student, teacher)).mean()
