"""FitNet's hint: match the student's map, after a small regressor, to the teacher's."""

from typing import ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import NegativeInt
from torch import Tensor, nn

from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.pairing import match_sizes, pair_stage
from kd_app.models.outputs import Outputs

_LARGEST_KERNEL = 5


class FeatureHint(LossTerm):
    """``mean (r(F_s) - F_t)^2`` over batch, channels and cells, for the maps F of one
    stage; r = convolution, batch norm and an optional ReLU.

    The kernel of the convolution depends on the two sizes: 1x1 for equal sizes, 3x3
    with stride 2 if the student's map is twice as large, a transposed 4x4 with stride 2
    if it is half as large, and an unpadded kernel of side ``1 + s - t`` if it is larger
    by up to 4 cells. In all other cases the larger map is average-pooled to the size of
    the smaller, and the convolution is 1x1. Romero et al., "FitNets: Hints for Thin
    Deep Nets", ICLR 2015, arXiv 1412.6550; trained jointly with the other terms, not in
    an earlier phase.
    """

    level: ClassVar[Level] = "feature"
    reads: frozenset[str] = frozenset({"features"})

    adapter: "Regressor"

    def __init__(self, *, stage: NegativeInt, activation: Literal["auto", "relu", "none"]) -> None:
        super().__init__()
        self.stage = stage
        self.activation = activation

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Build the regressor for the shapes of the two maps. 'auto' adds a ReLU if the
        teacher's map has no negative value. Raises `RequestError` if one of the models
        provides no feature maps.
        """
        ours, theirs = pair_stage("feature_hint", student, teacher, self.stage)
        relu = bool((theirs >= 0).all()) if self.activation == "auto" else self.activation == "relu"
        self.adapter = Regressor(ours, theirs, relu=relu).to(ours.device)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        ours, theirs = pair_stage("feature_hint", student, teacher, self.stage)
        if self.adapter.pointwise:
            ours, theirs = match_sizes(ours, theirs)
        return F.mse_loss(self.adapter(ours), theirs)


class Regressor(nn.Module):
    """Convolution, batch norm and optional ReLU, from the student's map to the channels
    (and, unless `pointwise`, the size) of the teacher's map.
    """

    def __init__(self, student: Tensor, teacher: Tensor, *, relu: bool) -> None:
        super().__init__()
        self.conv = _build_adapter(student, teacher)
        self.bn = nn.BatchNorm2d(teacher.shape[1])
        self.relu = relu

    @property
    def pointwise(self) -> bool:
        """Whether the convolution is 1x1; the caller then matches the sizes of the
        maps.
        """
        return self.conv.kernel_size == (1, 1)

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        x = self.conv(x)
        if x.numel() > x.shape[1]:
            x = self.bn(x)
        else:
            # One image with one cell has no variance: use the running statistics.
            x = F.batch_norm(
                x,
                self.bn.running_mean,
                self.bn.running_var,
                self.bn.weight,
                self.bn.bias,
                eps=self.bn.eps,
            )
        return F.relu(x) if self.relu else x


def _build_adapter(student: Tensor, teacher: Tensor) -> nn.Conv2d | nn.ConvTranspose2d:
    (_, wide, height, width), (_, out, to_height, to_width) = student.shape, teacher.shape
    if (height, width) == (2 * to_height, 2 * to_width):
        return nn.Conv2d(wide, out, 3, stride=2, padding=1)
    if (2 * height, 2 * width) == (to_height, to_width):
        return nn.ConvTranspose2d(wide, out, 4, stride=2, padding=1)
    kernel = (1 + height - to_height, 1 + width - to_width)
    fits = all(1 <= side <= _LARGEST_KERNEL for side in kernel)
    return nn.Conv2d(wide, out, kernel if fits else 1)
