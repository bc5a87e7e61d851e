"""Heads of attention layers: find them, and adapt layers whose width has changed.

A layer here is a module with `num_heads`, a linear layer `qkv` (or `q_proj`, `k_proj`
and `v_proj`) of width ``heads * head_dim`` each, and `proj` back to the tokens: ViT,
DeiT, NaFlexViT, BEiT, Swin, MobileViT and others in timm.
"""

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

_SEPARATE = ("q_proj", "k_proj", "v_proj")


def find_head_projections(model: nn.Module) -> dict[nn.Linear, int]:
    """Return the linear layers whose outputs are divided among heads, with the number
    of heads.
    """
    return {
        projection: layer.num_heads
        for layer in _iterate_layers(model)
        for projection in _list_projections(layer)
    }


def fit_heads(model: nn.Module) -> None:
    """Set the sizes that attention layers keep as numbers to those of their linear
    layers, which became narrower. All heads stay, each with fewer channels.
    """
    for layer in _iterate_layers(model):
        head_dim = layer.proj.in_features // layer.num_heads
        for name, size in (("head_dim", head_dim), ("attn_dim", layer.proj.in_features)):
            if hasattr(layer, name):
                setattr(layer, name, size)
        if _is_scale_of_wider_head(getattr(layer, "scale", None), head_dim):
            layer.scale = head_dim**-0.5


def _is_scale_of_wider_head(scale: object, head_dim: int) -> bool:
    """Whether a scale is ``width ** -0.5``, as fused attention computes it from the
    width, and not a scale of the architecture.
    """
    if not isinstance(scale, float) or scale <= 0:
        return False
    width = round(scale**-2)
    return width > head_dim and math.isclose(width**-0.5, scale)


def _iterate_layers(model: nn.Module) -> Iterator[Any]:
    for layer in model.modules():
        heads, out = getattr(layer, "num_heads", None), getattr(layer, "proj", None)
        projections = _list_projections(layer)
        if not isinstance(heads, int) or not isinstance(out, nn.Linear) or not projections:
            continue
        width = sum(each.out_features for each in projections)
        if width == 3 * out.in_features and out.in_features % heads == 0:
            yield layer


def _list_projections(layer: nn.Module) -> list[nn.Linear]:
    fused = getattr(layer, "qkv", None)
    if isinstance(fused, nn.Linear):
        return [fused]
    separate = [getattr(layer, name, None) for name in _SEPARATE]
    return [each for each in separate if isinstance(each, nn.Linear)]
