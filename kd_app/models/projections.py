"""Query, key and value of a vision transformer's global self-attention."""

from typing import Any

import torch
from timm.models.xcit import XCA
from torch import Tensor, nn
from torch.nn import functional

from kd_app.models.hooks import Recorder
from kd_app.models.outputs import Attention

_SEPARATE = ("q_proj", "k_proj", "v_proj")


def attention_modules(model: nn.Module, count: int) -> list[nn.Module]:
    """The self-attention of the last `count` blocks (of all, where there are fewer), shallow to deep, where each of them projects tokens to query,
    key and value; else an empty list.

    Cross-covariance attention (XCiT) relates channels, not tokens, and does not count.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        return []
    modules = [getattr(block, "attn", None) for block in list(blocks)[-count:]]
    able = [m for m in modules if isinstance(m, nn.Module) and _projects(m) and not isinstance(m, XCA)]
    return able if len(able) == len(modules) else []


def token_shape(seen: Recorder, module: nn.Module) -> tuple[int, ...]:
    """Shape of what one attention module was given or projected, ``(B, N, width)`` where it is global attention over a row of tokens."""
    recorded = [*seen.entered.items(), *seen.left.items()]
    return next(tuple(x.shape) for owner, x in recorded if owner in module.modules())


def _projects(module: nn.Module) -> bool:
    fused = isinstance(getattr(module, "qkv", None), nn.Linear)
    separate = all(isinstance(getattr(module, name, None), nn.Linear) for name in _SEPARATE)
    return (fused or separate) and isinstance(getattr(module, "num_heads", None), int)


def watch(seen: Recorder, module: nn.Module) -> None:
    """Record what `read` needs of one attention module (see `attention_modules`)."""
    if getattr(module, "qkv", None) is None:
        seen.watch_output(getattr(module, name) for name in _SEPARATE)
    elif getattr(module, "q_bias", None) is not None:
        seen.watch_input([module])
    else:
        seen.watch_output([_linear(module, "qkv")])


def read(seen: Recorder, module: Any, num_prefix: int) -> Attention:
    """Query, key and value as ``[B, heads, N, d]``, as the projections give them: before q/k norms and rotary embeddings."""
    if getattr(module, "qkv", None) is None:
        query, key, value = (_by_head(seen.left[_linear(module, name)], module.head_dim) for name in _SEPARATE)
        return Attention(query, key, value, num_prefix)
    fused = _fused(seen, module)
    batch, count, width = fused.shape
    heads = module.num_heads
    query, key, value = fused.reshape(batch, count, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    return Attention(query, key, value, num_prefix)


def _linear(module: nn.Module, name: str) -> nn.Linear:
    linear = getattr(module, name)
    assert isinstance(linear, nn.Linear)
    return linear


def _by_head(projected: Tensor, head_dim: int) -> Tensor:
    batch, count, _ = projected.shape
    return projected.reshape(batch, count, -1, head_dim).transpose(1, 2)


def _fused(seen: Recorder, module: nn.Module) -> Tensor:
    """``[B, N, 3 * heads * d]``. BEiT and EVA add their biases outside the projection, which then isn't run as a module: project again."""
    qkv = _linear(module, "qkv")
    if getattr(module, "q_bias", None) is None:
        return seen.left[qkv]
    bias = [getattr(module, name) for name in ("q_bias", "k_bias", "v_bias")]
    return functional.linear(seen.entered[module], qkv.weight, torch.cat(bias))
