"""What one forward pass revealed."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class Tokens(NamedTuple):
    """``patch`` [B, N, D] in row-major order of the grid, ``prefix`` [B, P, D] (class,
    distillation and register tokens).
    """

    patch: Tensor
    prefix: Tensor


class Attention(NamedTuple):
    """Query, key and value of one block, each ``[B, heads, N, d]``; the first
    `num_prefix` of the N tokens are no patches.

    bias: what the model adds to the scores (relative positions), ``[1 or B, 1 or heads,
    N, N]`` or less; None where it adds nothing.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    num_prefix: int
    bias: Tensor | None = None

    def compute_weights(self) -> Tensor:
        """What the model attends to: ``softmax(q k^T / sqrt(d) + bias)``, ``[B, heads,
        N, N]``, rows summing to 1.
        """
        scores = self.query @ self.key.transpose(-1, -2) * self.query.shape[-1] ** -0.5
        weights: Tensor = (scores if self.bias is None else scores + self.bias).softmax(dim=-1)
        return weights


class LogitsOnly(nn.Module):
    """A model of which nothing but its logits can be read; `why`: the reason, for who
    asks for more.
    """

    def __init__(self, why: str) -> None:
        super().__init__()
        self.why = why


@dataclass
class Outputs:
    """One forward pass; only the fields that the chosen terms read are filled, the
    others are None or empty.

    logits [B, K] · embedding [B, D], pooled, before the classifier · features, one [B,
    C, H, W] map a stage, shallow to deep (the tokens of a ViT laid on their grid) ·
    pre_activation, the maps before the last activation where a net has them · tokens
    and attention, one a block · classifier, the model's own head as a callable from
    embedding to logits.
    """

    logits: Tensor | None = None
    embedding: Tensor | None = None
    features: list[Tensor] = field(default_factory=list)
    pre_activation: list[Tensor] = field(default_factory=list)
    tokens: list[Tokens] = field(default_factory=list)
    attention: list[Attention] = field(default_factory=list)
    classifier: Callable[[Tensor], Tensor] | None = None

    def to_float32(self) -> "Outputs":
        """The same with half-precision tensors as float32: losses are never computed in
        less (float64 stays).
        """
        changes = {
            f.name: _widen(getattr(self, f.name)) for f in fields(self) if f.name != "classifier"
        }
        return replace(self, **changes)


@dataclass
class Panel(Outputs):
    """What several models say together, and, of those that are read by name, what each
    says by itself.
    """

    members: dict[str, Outputs] = field(default_factory=dict)


def _widen(value: T) -> T:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value  # type: ignore[return-value]
    if isinstance(value, dict):
        return {name: said.to_float32() for name, said in value.items()}  # type: ignore[return-value]
    if isinstance(value, tuple):
        return type(value)(*(_widen(part) for part in value))
    return [_widen(part) for part in value] if isinstance(value, list) else value  # type: ignore[return-value]
