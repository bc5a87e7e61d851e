"""Whether a model has attention layers."""

from collections.abc import Iterable
from typing import Final

_PROJECTIONS: Final = ("qkv", "q_proj", ".q.", ".qk.", ".kv.", ".query")
"""Parts of the names of the projections in attention layers of timm's models."""


def has_attention(names: Iterable[str]) -> bool:
    """Whether the entries of a state dict are those of a model with attention layers,
    also of a hybrid. A ResNet may pool with attention in its head, which does not
    count.
    """
    body = (name for name in names if not name.startswith("head."))
    return any(part in name for name in body for part in _PROJECTIONS)
