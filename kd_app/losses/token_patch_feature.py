"""Match class token, patches and embedding, for teachers trained without labels."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.pairing import require_embeddings
from kd_app.models.outputs import Outputs

_ALTERNATIVES = "Terms that can compare this pair: embedding_mse, embedding_cosine, feature_hint."


class TokenPatchFeature(LossTerm):
    """``token x mean (r_1(c_s) - c_t)^2 + patch x mean (r_2(X_s) - X_t)^2 + feature x
    mean (r_3(f_s) - f_t)^2`` for the class token c [B, D], the patch tokens X [B, N, D]
    of the last layer and the embedding f [B, D] of two vision transformers with the
    same N; r = layer norm and a linear map.

    Reads no labels and no logits, so the teacher may have any label space, or none.
    After Zhang et al., "Accessing Vision Foundation Models via ImageNet-1K" (Proteus),
    ICLR 2025, arXiv 2407.10366. The authors' code differs: it reads tokens after the
    final norm, here they are read before; its `feature` part compares all tokens once
    more, here it compares the embedding, the output that users of foundation models
    need; it masks patches in a second forward pass of the student, here all patches are
    visible.
    """

    level: ClassVar[Level] = "feature"
    reads: frozenset[str] = frozenset({"tokens", "embedding"})

    adapters: nn.ModuleList

    def __init__(
        self, *, token: NonNegativeFloat, patch: NonNegativeFloat, feature: NonNegativeFloat
    ) -> None:
        super().__init__()
        self.weights = (token, patch, feature)

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Build the three heads. Raises `RequestError` for models without tokens or
        class token, and for different numbers of patches.
        """
        for name, outputs in (("student", student), ("teacher", teacher)):
            if not outputs.tokens or not outputs.tokens[-1].prefix.shape[1]:
                raise RequestError(
                    "token_patch_feature compares class token and patches of two vision"
                    f" transformers, but the {name} has none. {_ALTERNATIVES}"
                )
        counts = [outputs.tokens[-1].patch.shape[1] for outputs in (student, teacher)]
        if counts[0] != counts[1]:
            raise RequestError(
                f"token_patch_feature compares patch by patch, but the student has {counts[0]}"
                f" patches, and the teacher {counts[1]}. Expected the same number: give both models"
                f" the same image size / patch size. {_ALTERNATIVES}"
            )
        pairs = self._pair_tokens(student, teacher)
        heads = (
            nn.Sequential(nn.LayerNorm(s.shape[-1]), nn.Linear(s.shape[-1], t.shape[-1]))
            for s, t in pairs
        )
        self.adapters = nn.ModuleList(heads).to(pairs[0][0].device)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        parts = zip(self.weights, self.adapters, self._pair_tokens(student, teacher), strict=True)
        return torch.stack(
            [weight * F.mse_loss(head(ours), theirs) for weight, head, (ours, theirs) in parts]
        ).sum()

    def _pair_tokens(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        ours, theirs = student.tokens[-1], teacher.tokens[-1]
        pooled = require_embeddings("token_patch_feature", student, teacher)
        return [(ours.prefix[:, 0], theirs.prefix[:, 0]), (ours.patch, theirs.patch), pooled]
