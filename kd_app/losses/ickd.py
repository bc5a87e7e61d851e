"""Inter-channel correlation: match the similarities of channels within every image."""

from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import NegativeInt
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.feature_hint import Regressor
from kd_app.losses.pairing import pair_stage
from kd_app.models.outputs import Outputs


class ICKD(LossTerm):
    """``sum (G_s - G_t)^2 / (B C)`` with ``G [B, C, C] = F F'``, each row with L2 norm
    1, for the maps F [B, C, cells] of one stage.

    The student's map first passes a 1x1 convolution and batch norm to the teacher's C
    channels; sizes may differ. Liu et al., "Exploring Inter-Channel Correlation for
    Diversity-Preserved Knowledge Distillation", ICCV 2021, arXiv 2202.03680.
    """

    level: ClassVar[Level] = "relation"
    reads: frozenset[str] = frozenset({"features"})

    adapter: Regressor

    def __init__(self, *, stage: NegativeInt) -> None:
        super().__init__()
        self.stage = stage

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Build the convolution for the two widths. Raises `RequestError` if one of the
        models provides no feature maps.
        """
        ours, theirs = pair_stage("ickd", student, teacher, self.stage)
        # Maps of one cell each give a pointwise regressor.
        adapter = Regressor(ours[..., :1, :1], theirs[..., :1, :1], relu=False)
        self.adapter = adapter.to(ours.device)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        ours, theirs = pair_stage("ickd", student, teacher, self.stage)
        gap = compute_channel_similarity(self.adapter(ours)) - compute_channel_similarity(theirs)
        return gap.square().sum() / (gap.shape[0] * gap.shape[1])


def compute_channel_similarity(
    feature: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch channels others"]:
    """Return the inner products of the channels of each image, with rows of L2
    norm 1.
    """
    flat = feature.flatten(2)
    return F.normalize(flat @ flat.transpose(1, 2), dim=2)
