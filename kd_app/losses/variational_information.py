"""VID: maximize the information about the teacher's map in the student's map, with a
trained Gaussian.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.pairing import match_sizes, pair_stages
from kd_app.models.outputs import Outputs

_MIN_VARIANCE = 1e-5


class VariationalInformation(LossTerm):
    """``sum over stages of mean 1/2 [(mu(F_s) - F_t)^2 / v + log v]`` over batch,
    channels and cells, with one trained variance v per channel.

    mu = three 1x1 convolutions without bias, with ReLUs in between, as wide as the
    teacher's map; v = softplus(rho) + 1e-5. The larger of two maps is average-pooled to
    the size of the smaller. The value may be negative: it is a negative log-likelihood
    without its constant. Ahn et al., "Variational Information Distillation for
    Knowledge Transfer", CVPR 2019, arXiv 1904.05835.
    """

    level: ClassVar[Level] = "feature"
    reads: frozenset[str] = frozenset({"features"})

    adapters: nn.ModuleList

    def __init__(self, *, stages: PositiveInt, variance: PositiveFloat) -> None:
        super().__init__()
        self.stages = stages
        self.variance = variance

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Build one Gaussian per stage. Raises `RequestError` if one of the models
        provides no feature maps.
        """
        pairs = self._pair_maps(student, teacher)
        self.adapters = nn.ModuleList(
            Gaussian(s.shape[1], t.shape[1], self.variance) for s, t in pairs
        ).to(pairs[0][0].device)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the sum over the stages."""
        pairs = zip(self.adapters, self._pair_maps(student, teacher), strict=True)
        return torch.stack([gaussian(*match_sizes(*pair)) for gaussian, pair in pairs]).sum()

    def _pair_maps(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        return pair_stages("variational_information", student, teacher)[: self.stages]


class Gaussian(nn.Module):
    """The distribution of the teacher's map given the student's map: the mean is a
    small net, and every channel has a variance.
    """

    def __init__(self, ours: int, theirs: int, variance: float) -> None:
        super().__init__()
        widths = ((ours, theirs), (theirs, theirs), (theirs, theirs))
        first, second, third = (nn.Conv2d(*width, 1, bias=False) for width in widths)
        self.regressor = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        excess = max(variance - _MIN_VARIANCE, _MIN_VARIANCE)
        # The inverse of softplus, so that the initial variance is `variance`.
        self.log_scale = nn.Parameter(
            torch.full((theirs,), excess + math.log(-math.expm1(-excess)))
        )

    def forward(
        self,
        ours: Float[Tensor, "batch ours height width"],
        theirs: Float[Tensor, "batch theirs height width"],
    ) -> Float[Tensor, ""]:
        """Return the mean negative log-likelihood."""
        variance = (F.softplus(self.log_scale) + _MIN_VARIANCE)[:, None, None]
        value: Tensor = (
            0.5 * ((self.regressor(ours) - theirs).square() / variance + variance.log()).mean()
        )
        return value
