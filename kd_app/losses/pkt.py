"""Probabilistic knowledge transfer: match the neighbor distribution of every image in
the batch.
"""

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm, TermPart
from kd_app.losses.pairing import require_embeddings
from kd_app.models.outputs import Outputs


class PKT(LossTerm):
    """``mean_ij K_t log((K_t + epsilon) / (K_s + epsilon))``, ``K_ij = (cos(f_i, f_j) +
    1) / 2`` with rows normalized to sum 1, f [B, D] the pooled features.

    `epsilon` is also added to the norms in the cosine. The mean is over B x B entries,
    therefore published weights are large. Passalis & Tefas, "Learning Deep
    Representations with Probabilistic Knowledge Transfer", ECCV 2018, arXiv 1803.10837.
    """

    level: ClassVar[Level] = "relation"
    reads: frozenset[str] = frozenset({"embedding"})
    needs_global_batch: bool = True

    def __init__(self, *, epsilon: Annotated[float, Field(gt=0, le=1e-3)]) -> None:
        super().__init__()
        self.epsilon = epsilon

    def list_parts(self) -> tuple[TermPart, ...]:
        return (TermPart(min_images=2),)

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Raises `RequestError` if one of the models provides no pooled features."""
        require_embeddings("pkt", student, teacher)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean over the pairs of images; 0 for equal neighbor distributions,
        and for a batch of one.
        """
        ours, theirs = (
            self._compute_neighbors(x) for x in require_embeddings("pkt", student, teacher)
        )
        return (theirs * ((theirs + self.epsilon).log() - (ours + self.epsilon).log())).mean()

    def _compute_neighbors(
        self, x: Float[Tensor, "batch features"]
    ) -> Float[Tensor, "batch batch"]:
        x = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + self.epsilon)
        similarity = (x @ x.T + 1) / 2
        return similarity / similarity.sum(dim=1, keepdim=True)
