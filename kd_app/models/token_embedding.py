"""The class token of a vision transformer as its embedding."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kd_app.config import RequestError

TokenKind = Literal["class_token", "both"]


class TokenEmbedding(nn.Module):
    """``backbone.forward_features`` reduced to one vector for each image: the class
    token, or (both) the class token and the mean of the patch tokens, one after the
    other.

    Both are those after the last norm: a backbone that norms only what it has pooled
    (``fc_norm``) norms each of them.

    Raises `RequestError` for a model without a class token.
    """

    def __init__(self, backbone: nn.Module, kind: TokenKind) -> None:
        super().__init__()
        if getattr(backbone, "cls_token", None) is None or not hasattr(
            backbone, "forward_features"
        ):
            raise RequestError(
                f"teacher.embedding={kind} needs a class token, and {type(backbone).__name__} has"
                " none. Expected: a vision transformer with a class token, such as"
                " vit_base_patch16_224 or deit_small_patch16_224. Set teacher.embedding=pooled."
            )
        self.backbone = backbone
        self.kind = kind
        self._num_prefix = int(getattr(backbone, "num_prefix_tokens", 1))

    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch embedding"]:
        backbone: Any = self.backbone
        tokens: Tensor = backbone.forward_features(image)
        parts = [tokens[:, 0]]
        if self.kind == "both":
            parts.append(tokens[:, self._num_prefix :].mean(dim=1))
        norm = getattr(backbone, "fc_norm", nn.Identity())
        return torch.cat([norm(part) for part in parts], dim=1)
