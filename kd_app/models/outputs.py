"""The outputs of one forward pass that loss terms read."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class Tokens(NamedTuple):
    """``patch`` [B, N, D] in row-major order of the grid, and ``prefix`` [B, P, D]
    (class, distillation and register tokens).
    """

    patch: Tensor
    prefix: Tensor


class Attention(NamedTuple):
    """Query, key and value of one block, each ``[B, heads, N, d]``. The first
    `num_prefix` of the N tokens are prefix tokens.

    bias: added to the scores (relative positions), ``[1 or B, 1 or heads, N, N]`` or
    broadcastable to it; None: no bias.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    num_prefix: int
    bias: Tensor | None = None

    def compute_weights(self) -> Tensor:
        """Return the attention weights ``softmax(q k^T / sqrt(d) + bias)``, ``[B,
        heads, N, N]``, rows summing to 1.
        """
        scores = self.query @ self.key.transpose(-1, -2) * self.query.shape[-1] ** -0.5
        weights: Tensor = (scores if self.bias is None else scores + self.bias).softmax(dim=-1)
        return weights


class LogitsOnly(nn.Module):
    """A model with no readable outputs except the logits. `reason` explains why, in
    error messages.
    """

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


@dataclass
class Outputs:
    """The outputs of one forward pass. Only the fields that loss terms read are filled;
    the others are None or empty.

    logits [B, K] · embedding [B, D], pooled, before the classifier · features, one [B,
    C, H, W] map per stage, shallow to deep (for a ViT the tokens on their grid) ·
    pre_activation, the maps before the last activation, if the model has them · tokens
    and attention, one per block · classifier, the function from embedding to logits.
    """

    logits: Tensor | None = None
    embedding: Tensor | None = None
    features: list[Tensor] = field(default_factory=list)
    pre_activation: list[Tensor] = field(default_factory=list)
    tokens: list[Tokens] = field(default_factory=list)
    attention: list[Attention] = field(default_factory=list)
    classifier: Callable[[Tensor], Tensor] | None = None

    def to_float32(self) -> "Outputs":
        """Return a copy with half-precision tensors cast to float32, the lowest
        precision for losses. float64 stays.
        """
        changes = {
            f.name: _cast_to_float32(getattr(self, f.name))
            for f in fields(self)
            if f.name != "classifier"
        }
        return replace(self, **changes)


@dataclass
class EnsembleOutputs(Outputs):
    """The combined outputs of an ensemble, and the outputs of single members that loss
    terms read by name.
    """

    members: dict[str, Outputs] = field(default_factory=dict)


def _cast_to_float32(value: T) -> T:
    if isinstance(value, Tensor):
        half = value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if half else value  # type: ignore[return-value]
    if isinstance(value, dict):
        return {  # type: ignore[return-value]
            name: outputs.to_float32() for name, outputs in value.items()
        }
    if isinstance(value, tuple):
        return type(value)(*(_cast_to_float32(part) for part in value))
    if isinstance(value, list):
        return [_cast_to_float32(part) for part in value]  # type: ignore[return-value]
    return value
