"""The recorded query, key and value are the arguments of the model's own fused
attention.
"""

from typing import Any

import pytest
import timm
import torch
from timm.models.efficientvim import EfficientViM, EfficientViMDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from kd_app.models.attention_recorder import AttentionRecorder, find_global_calls
from kd_app.models.outputs import Attention
from kd_app.models.taps import Taps

VIT: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "num_heads": 3,
    "depth": 3,
    "num_classes": 7,
}
VIM: dict[str, Any] = {
    "in_chans": 3,
    "num_classes": 7,
    "embed_dim": (16, 24, 32),
    "depths": (1, 1, 1),
    "state_dim": (9, 6, 4),
}


def call(
    *, batch: int = 1, queries: int = 5, keys: int = 5, bias: Tensor | None = None
) -> Attention:
    return Attention(
        torch.zeros(batch, 2, queries, 8),
        torch.zeros(batch, 2, keys, 8),
        torch.zeros(batch, 2, keys, 8),
        0,
        bias,
    )


@pytest.mark.parametrize(
    "build",
    [
        lambda: VisionTransformer(**VIT, qk_norm=True),
        lambda: Eva(**VIT, use_rot_pos_emb=True, qkv_fused=False),
        lambda: timm.create_model("test_vit_relpos", img_size=32),
    ],
    ids=["qk_norm", "rotary", "relative_positions"],
)
def test_weights_times_values_are_the_input_of_the_output_projection(build: Any) -> None:
    torch.manual_seed(0)
    net: Any = build().eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    mixed: list[Tensor] = []
    net.blocks[-1].attn.proj.register_forward_pre_hook(
        lambda _, arguments: mixed.append(arguments[0])
    )
    (attention,) = Taps(net, frozenset({"attention"}))(torch.randn(2, 3, 32, 32)).attention
    weights = attention.compute_weights()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))
    torch.testing.assert_close((weights @ attention.value).transpose(1, 2).flatten(2), mixed[-1])


def test_a_custom_scale_is_moved_into_the_query() -> None:
    query, key, value = torch.randn(3, 1, 2, 4, 8).unbind(0)
    with AttentionRecorder() as recorder:
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=0.7)
    torch.testing.assert_close(recorder.calls[0].compute_weights() @ value, out)


def test_only_the_requested_calls_are_recorded() -> None:
    one = torch.randn(1, 1, 2, 4)
    with AttentionRecorder({1}) as recorder:
        for _ in range(3):
            torch.nn.functional.scaled_dot_product_attention(one, one, one)
    assert list(recorder.calls) == [1]


@pytest.mark.parametrize(
    ("calls", "count", "chosen"),
    [
        ([call(), call(), call()], 2, (1, 2)),
        ([call(), call()], 5, (0, 1)),
        ([call(), call(), call(queries=1)], 1, (1,)),
        ([call(queries=17, keys=17), call()], 2, (1,)),
        ([call(batch=4)], 1, ()),
        ([call(keys=2)], 1, ()),
        ([call(bias=torch.ones(5, 5, dtype=torch.bool))], 1, ()),
        ([call(queries=9, keys=9)], 1, ()),
        ([call(queries=4, keys=4)], 1, (0,)),
    ],
    ids=[
        "last",
        "all",
        "pooling_behind",
        "smaller_before",
        "windows",
        "fewer_keys",
        "masked",
        "other_size",
        "no_prefix",
    ],
)
def test_the_last_blocks_with_global_attention_are_chosen(
    calls: list[Attention], count: int, chosen: tuple[int, ...]
) -> None:
    assert find_global_calls(dict(enumerate(calls)), count, patches=4, prefixes={0, 1}) == chosen


@pytest.mark.parametrize("kind", [EfficientViM, EfficientViMDistilled])
def test_several_heads_of_learned_shares_make_the_logits_of_the_embedding(kind: Any) -> None:
    torch.manual_seed(0)
    net = kind(**VIM).eval()
    for name, parameter in net.named_parameters():
        if name.startswith("weights"):
            nn.init.normal_(parameter)
    outputs = Taps(net, frozenset({"logits", "embedding", "classifier"}))(torch.randn(2, 3, 64, 64))
    assert outputs.classifier is not None
    assert outputs.embedding is not None
    torch.testing.assert_close(outputs.classifier(outputs.embedding), outputs.logits)
