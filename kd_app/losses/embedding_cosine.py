"""Align the direction of the student's embedding, after a linear map, with the
teacher's.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.base import TermPart
from kd_app.losses.embedding import EmbeddingTerm
from kd_app.models.outputs import Outputs


class EmbeddingCosine(EmbeddingTerm):
    """``mean_b 1 - cos(r(f_s), f_t - m)`` for the embeddings f [B, D] before the
    classifier; r = a linear map, or the identity if the widths are equal and
    `always_project` is false. m = 0, or with `center` the mean of all embeddings of the
    teacher so far, those of the batch included.

    Reads no labels and no logits, so the teacher may have any label space, and the
    length of the teacher's embedding does not matter. Embeddings after a ReLU point in
    nearly the same direction: most of their cosine is their mean, which says nothing
    about an image. The linear map then learns the teacher's embedding without its mean,
    at any length. Checkpoints include the mean.
    """

    name: ClassVar[str] = "embedding_cosine"

    mean: Tensor
    count: Tensor

    def __init__(self, *, center: bool, always_project: bool) -> None:
        super().__init__(always_project=always_project)
        self.center = center
        self.needs_global_batch = center

    def list_parts(self) -> tuple[TermPart, ...]:
        # the first image is the mean of itself
        return (TermPart(min_images=2 if self.center else 1),)

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Build the linear map, and the mean of no embedding. Raises
        `RequestError` if one of the models provides no embedding.
        """
        super().build(student, teacher)
        if self.center:
            assert teacher.embedding is not None
            width, device = teacher.embedding.shape[1], teacher.embedding.device
            self.register_buffer("mean", torch.zeros(width, device=device))
            self.register_buffer("count", torch.zeros((), dtype=torch.int64, device=device))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean over the batch, 0 to 2."""
        ours, theirs = self.pair_embeddings(student, teacher)
        if self.center:
            theirs = theirs - self._update_mean(theirs)
        return 1 - F.cosine_similarity(ours, theirs).mean()

    @torch.no_grad()
    def _update_mean(self, embeddings: Float[Tensor, "batch width"]) -> Float[Tensor, " width"]:
        self.count += len(embeddings)
        self.mean += (embeddings - self.mean).sum(dim=0) / self.count
        return self.mean
