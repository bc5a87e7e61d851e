"""An embedding of length 1."""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

_TINY: Final = 1e-12


class NormalizedEmbedding(nn.Module):
    """``f / sqrt(|f|^2 + 1e-12)`` with ``f = model(image)``, for files whose inner
    products are cosines.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch embedding"]:
        embedding: Tensor = self.model(image)
        squares = (embedding * embedding).sum(dim=1, keepdim=True)
        return embedding * torch.rsqrt(squares + _TINY)
