"""VICReg: equal embeddings of an image, features that vary and do not correlate."""

from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from kd_app.data.batch import Batch
from kd_app.losses.adapters import BatchNorm
from kd_app.losses.base import TermPart
from kd_app.losses.embedding import EmbeddingTerm
from kd_app.models.outputs import Outputs

_EPS = 1e-4


class VicReg(EmbeddingTerm):
    """``invariance s(z, z') + variance (v(z) + v(z')) / 2 + covariance (c(z) + c(z'))``
    for z = h(r(f_s)) and z' = h(f_t) [B, E]: s = the mean square of z - z', v = the
    mean over the features of ``max(0, 1 - sqrt(var + 1e-4))``, c = the sum of the
    squares of all covariances of two features, divided by E; variances and covariances
    divide by B - 1.

    h = an expander that both sides share, with three linear layers of `width` outputs,
    the first two followed by batch norm and ReLU. r = a linear map, or the identity if
    the widths are equal. The paper sums s over the features and does not halve v; means
    and halves are those of the authors' code, for which the published weights hold. One
    image has neither variance nor covariance.

    Made for two views of an image by one student, where nothing else prevents a
    constant embedding; with a teacher, the teacher's embedding takes the place of the
    second view. Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance
    Regularization for Self-Supervised Learning", ICLR 2022, arXiv 2105.04906.
    """

    name: ClassVar[str] = "vicreg"
    needs_global_batch: bool = True

    expander: nn.ModuleList
    norms: nn.ModuleList

    def __init__(
        self,
        *,
        invariance: NonNegativeFloat,
        variance: NonNegativeFloat,
        covariance: NonNegativeFloat,
        width: PositiveInt,
    ) -> None:
        super().__init__(always_project=False)
        self.invariance = invariance
        self.variance = variance
        self.covariance = covariance
        self.width = width

    def list_parts(self) -> tuple[TermPart, ...]:
        parts = (
            (self.invariance, TermPart("the invariance")),
            (self.variance, TermPart("the variance", min_images=2)),
            (self.covariance, TermPart("the covariance", min_images=2)),
        )
        return tuple(part for weight, part in parts if weight > 0)

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Build the linear map and the expander. Raises `RequestError` if one of the
        models provides no embedding.
        """
        super().build(student, teacher)
        assert teacher.embedding is not None
        widths, device = (teacher.embedding.shape[1], *(self.width,) * 3), teacher.embedding.device
        self.expander = nn.ModuleList(
            # a bias before batch norm has no effect
            nn.Linear(before, after, bias=number == 2)
            for number, (before, after) in enumerate(pairwise(widths))
        ).to(device)
        self.norms = nn.ModuleList(BatchNorm(self.width) for _ in range(2)).to(device)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the value for the batch."""
        ours, theirs = (self._expand(each) for each in self.pair_embeddings(student, teacher))
        value: Tensor = self.invariance * F.mse_loss(ours, theirs)
        if len(ours) == 1:
            return value
        for z in (ours, theirs):
            centered = z - z.mean(dim=0)
            covariance = centered.T @ centered / (len(z) - 1)
            spread = (covariance.diagonal() + _EPS).sqrt()
            others = covariance.square().sum() - covariance.diagonal().square().sum()
            value = value + self.variance / 2 * F.relu(1 - spread).mean()
            value = value + self.covariance * others / z.shape[1]
        return value

    def _expand(self, embedding: Float[Tensor, "batch width"]) -> Float[Tensor, "batch expanded"]:
        first, second, last = self.expander
        z: Tensor = embedding
        for layer, norm in zip((first, second), self.norms, strict=True):
            z = torch.relu(norm(layer(z)[:, :, None, None])[:, :, 0, 0])
        expanded: Tensor = last(z)
        return expanded
