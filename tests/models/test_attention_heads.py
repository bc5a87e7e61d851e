"""Attention layers whose width has changed keep their heads."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from kd_app.models.attention_heads import find_head_projections, fit_heads
from kd_app.models.layer_widths import resize


def build_vit(name: str = "vit_tiny_patch16_224", **kwargs: Any) -> nn.Module:
    settings = {"img_size": 32, "depth": 1, "embed_dim": 32, "num_heads": 2, "num_classes": 3}
    return timm.create_model(name, **{**settings, **kwargs}).eval()


def test_the_projections_of_the_heads_are_found() -> None:
    model = build_vit()
    attention = model.blocks[0].attn  # type: ignore[index, union-attr]
    assert find_head_projections(model) == {attention.qkv: 2}
    assert find_head_projections(timm.create_model("test_resnet")) == {}
    # query and key are narrower than the value
    assert find_head_projections(timm.create_model("levit_128s")) == {}


@pytest.mark.parametrize("fused", [True, False])
def test_a_narrower_layer_keeps_its_heads_and_scales_by_the_new_width(fused: bool) -> None:
    model = build_vit()
    attention: Any = model.blocks[0].attn  # type: ignore[index, union-attr]
    attention.fused_attn = fused
    widths = {
        "blocks.0.attn.qkv": {"out_features": 48},
        "blocks.0.attn.proj": {"in_features": 16},
    }
    resize(model, widths, source="a test")
    assert (attention.num_heads, attention.head_dim, attention.attn_dim) == (2, 8, 16)
    nn.init.normal_(attention.qkv.weight)
    tokens = torch.randn(2, 5, 32)
    q, k, v = attention.qkv(tokens).reshape(2, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / 8**0.5).softmax(dim=-1)
    expected = attention.proj((weights @ v).transpose(1, 2).reshape(2, 5, 16))
    torch.testing.assert_close(attention(tokens), expected)


def test_a_model_as_built_is_not_changed() -> None:
    model = build_vit(qkv_bias=False)
    attention: Any = model.blocks[0].attn  # type: ignore[index, union-attr]
    attention.scale = 0.3
    fit_heads(model)
    assert attention.scale == 0.3
