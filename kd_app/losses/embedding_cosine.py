"""Align the direction of the student's embedding, after a linear map, with the
teacher's.
"""

from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.embedding import EmbeddingTerm
from kd_app.models.outputs import Outputs


class EmbeddingCosine(EmbeddingTerm):
    """``mean_b 1 - cos(r(f_s), f_t)`` for the embeddings f [B, D] before the
    classifier; r = a linear map, or the identity if the widths are equal and
    `always_project` is false.

    Reads no labels and no logits, so the teacher may have any label space, and the
    length of the teacher's embedding does not matter.
    """

    name: ClassVar[str] = "embedding_cosine"

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean over the batch, 0 to 2."""
        return 1 - F.cosine_similarity(*self.pair_embeddings(student, teacher)).mean()
