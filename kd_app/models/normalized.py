"""An embedding of length 1."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class NormalizedEmbedding(nn.Module):
    """``model(image) / |model(image)|``, for files whose inner products are cosines."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch embedding"]:
        return F.normalize(self.model(image), dim=1)
