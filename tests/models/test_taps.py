import copy
from typing import Any

import pytest
import timm
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.levit import LevitDistilled
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer
from timm.models.xcit import Xcit
from torch import Tensor, nn
from torch.nn import functional

import kd_app.models.small  # noqa: F401
from kd_app.config import RequestError
from kd_app.models.outputs import Outputs
from kd_app.models.taps import Taps

ALL = frozenset(
    {"logits", "embedding", "classifier", "features", "pre_activation", "tokens", "attention"}
)
EVERY = frozenset({"logits", "embedding", "classifier", "features", "pre_activation"})
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 3, "depth": 5}
SWIN = {
    "img_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 16,
    "depths": (1, 1, 2),
    "num_heads": (1, 2, 4),
}
LEVIT = {
    "img_size": 64,
    "embed_dim": (32, 48, 64),
    "key_dim": 16,
    "num_heads": (2, 3, 4),
    "depth": (1, 1, 1),
}
DISTILLED = "deit_tiny_distilled_patch16_224"
Make = str | type[nn.Module]

# Constructor, arguments, image side, maps (channels, side), width of the embedding,
# number of maps produced by an activation.
NETS: list[tuple[Make, dict[str, Any], int, list[tuple[int, int]], int, int]] = [
    ("resnet8", {}, 28, [(16, 28), (32, 14), (64, 7)], 64, 3),
    ("wrn_16_1", {}, 32, [(16, 32), (32, 16), (64, 8)], 64, 0),
    ("test_resnet", {}, 64, [(32, 16), (48, 8), (192, 4), (96, 2)], 96, 4),
    ("resnet10t", {}, 32, [(64, 8), (128, 4), (256, 2), (512, 1)], 512, 4),
    ("mobilenetv3_small_050", {}, 64, [(8, 16), (16, 8), (24, 4), (288, 2)], 1024, 1),
    ("test_efficientnet", {}, 64, [(24, 16), (32, 8), (48, 4), (64, 2)], 256, 0),
    ("test_convnext", {}, 64, [(24, 16), (32, 8), (48, 4), (64, 2)], 64, 0),
    ("regnetx_002", {}, 32, [(24, 8), (56, 4), (152, 2), (368, 1)], 368, 4),
    ("test_byobnet", {}, 64, [(32, 16), (64, 8), (128, 4), (256, 2)], 256, 4),
    ("dla46_c", {}, 32, [(64, 8), (64, 4), (128, 2), (256, 1)], 256, 4),
    ("swin_tiny_patch4_window7_224", SWIN, 32, [(16, 16), (32, 8), (64, 4)], 64, 0),
    (LevitDistilled, LEVIT, 64, [(32, 4), (48, 2), (64, 1)], 64, 0),
    ("test_vit", {"img_size": 32}, 32, [(64, 2)] * 4, 64, 0),
    ("vit_tiny_patch16_224", VIT, 32, [(48, 4)] * 4, 48, 0),
    (DISTILLED, VIT, 32, [(48, 4)] * 4, 2 * 48, 0),
    ("test_vit_relpos", {"img_size": 32}, 32, [(96, 2)] * 4, 96, 0),
    (
        MlpMixer,
        {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_blocks": 6},
        32,
        [(48, 4)] * 4,
        48,
        0,
    ),
    (Xcit, {"img_size": 32, "embed_dim": 48, "num_heads": 3, "depth": 3}, 32, [(48, 2)] * 3, 48, 0),
    (Eva, {**VIT, "use_rot_pos_emb": True, "qkv_fused": False}, 32, [(48, 4)] * 4, 48, 0),
]
# Constructor, arguments, prefix tokens, patches, heads, width of a head.
TRANSFORMERS: list[tuple[Make, dict[str, Any], int, int, int, int]] = [
    ("test_vit", {"img_size": 32}, 1, 4, 2, 32),
    (VisionTransformer, {**VIT, "qk_norm": True}, 1, 16, 3, 16),
    (DISTILLED, VIT, 2, 16, 3, 16),
    ("test_vit_relpos", {"img_size": 32}, 0, 4, 3, 32),
    (Eva, {**VIT, "use_rot_pos_emb": True, "qkv_fused": False}, 1, 16, 3, 16),
    (Eva, {**VIT, "num_reg_tokens": 2}, 3, 16, 3, 16),
    (Beit, VIT, 1, 16, 3, 16),
]


def make(what: Make, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return (
        timm.create_model(what, num_classes=7, **kwargs)
        if isinstance(what, str)
        else what(num_classes=7, **kwargs)
    ).eval()


def name_of(value: object) -> str | None:
    return value.__name__ if isinstance(value, type) else value if isinstance(value, str) else ""


def images(side: int, *, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize(
    ("what", "kwargs", "side", "maps", "width", "activated"), NETS, ids=name_of
)
def test_all_fields_of_a_timm_model_have_a_gradient(
    what: Make,
    kwargs: dict[str, Any],
    side: int,
    maps: list[tuple[int, int]],
    width: int,
    activated: int,
) -> None:
    net, image = make(what, **kwargs), images(side)
    outputs = Taps(net, EVERY)(image)
    assert outputs.logits is not None
    assert torch.equal(outputs.logits, net(image))
    assert outputs.embedding is not None
    assert outputs.classifier is not None
    assert outputs.embedding.shape == (2, width)
    torch.testing.assert_close(outputs.classifier(outputs.embedding), outputs.logits)
    assert [(one.shape[1], one.shape[2]) for one in outputs.features] == maps
    assert len(outputs.pre_activation) == activated
    assert hooks_of(net) == 0
    tensors = (outputs.logits, outputs.embedding, *outputs.features, *outputs.pre_activation)
    assert all(tensor.requires_grad for tensor in tensors)
    torch.stack([(tensor - 1).square().sum() for tensor in tensors]).sum().backward()
    first, head = (
        next(p for p in net.parameters() if p.dim() == 4),
        [p for p in net.parameters() if p.dim() > 1][-1],
    )
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in (first, head)
    )


@pytest.mark.parametrize(
    ("what", "kwargs", "prefix", "patches", "heads", "width"), TRANSFORMERS, ids=name_of
)
def test_tokens_and_attention_of_a_transformer(
    what: Make, kwargs: dict[str, Any], prefix: int, patches: int, heads: int, width: int
) -> None:
    net, image = make(what, **kwargs), images(kwargs["img_size"])
    outputs = Taps(net, ALL)(image)
    assert outputs.logits is not None
    assert torch.equal(outputs.logits, net(image))
    assert len(outputs.tokens) == len(outputs.features) == min(4, len(net.blocks))
    for tokens, grid in zip(outputs.tokens, outputs.features, strict=True):
        assert torch.equal(tokens.patch, grid.flatten(2).mT)
        assert tokens.prefix.shape == (2, prefix, grid.shape[1])
    (attention,) = outputs.attention
    assert attention.num_prefix == prefix
    assert all(
        part.shape == (2, heads, prefix + patches, width)
        for part in (attention.query, attention.key, attention.value)
    )


def attend(attention: Any) -> Tensor:
    mixed = functional.scaled_dot_product_attention(attention.query, attention.key, attention.value)
    return mixed.transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("what", "kwargs"),
    [
        ("vit_tiny_patch16_224", {}),
        (DISTILLED, {}),
        (Beit, {}),
        (Eva, {}),
        (Eva, {"qkv_fused": False}),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_query_key_and_value_are_those_of_the_last_blocks(
    what: Make, kwargs: dict[str, Any], count: int
) -> None:
    net = make(what, **VIT, **kwargs)
    for parameter in net.parameters():
        # Biases too: BEiT and EVA add them outside the projection.
        nn.init.normal_(parameter, std=0.1)
    mixed: list[Tensor] = []
    for block in net.blocks:
        block.attn.proj.register_forward_pre_hook(lambda _, arguments: mixed.append(arguments[0]))
    outputs = Taps(net, frozenset({"attention"}), attention_blocks=count)(images(32))
    assert len(outputs.attention) == count
    for attention, expected in zip(outputs.attention, mixed[-count:], strict=True):
        torch.testing.assert_close(attend(attention), expected)


def test_logits_alone_are_the_plain_call(monkeypatch: pytest.MonkeyPatch) -> None:
    net, image = make("resnet8"), images(16)
    monkeypatch.setattr("kd_app.models.taps.Recorder", lambda: pytest.fail("hooks for logits only"))
    monkeypatch.setattr(
        "kd_app.models.taps.plan_taps", lambda *_: pytest.fail("a planning pass for logits only")
    )
    outputs = Taps(net, frozenset({"logits"}))(image)
    assert outputs.logits is not None
    assert torch.equal(outputs.logits, net(image))
    assert outputs == Outputs(logits=outputs.logits)


@pytest.mark.parametrize("name", sorted(ALL))
def test_only_the_fields_that_are_read_are_filled(name: str) -> None:
    outputs = Taps(make("test_vit", img_size=32), frozenset({name}))(images(32))
    filled = {
        field
        for field, value in vars(outputs).items()
        if value is not None and (isinstance(value, Tensor) or callable(value) or len(value))
    }
    assert filled == ({name} if name != "pre_activation" else set())


def test_the_head_does_not_run_if_it_is_not_read() -> None:
    net = make("test_resnet")
    taps = Taps(net, frozenset({"features"}))
    taps(images(64))
    net.fc.register_forward_pre_hook(lambda *_: pytest.fail("the head ran"))
    assert len(taps(images(64)).features) == 4


@pytest.mark.parametrize("name", ["resnet8", "test_resnet", "regnetx_002", "test_byobnet"])
def test_the_map_before_the_last_activation_becomes_the_stage_map(name: str) -> None:
    net = make(name)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
    outputs = Taps(net, EVERY)(images(32))
    for before, after in zip(outputs.pre_activation, outputs.features, strict=True):
        assert (before < 0).any()
        assert torch.equal(functional.relu(before), after)


def test_a_call_leaves_state_modes_randomness_and_hooks_as_they_were() -> None:
    net, image = make("test_vit", img_size=32, drop_rate=0.5).train(), images(32)
    net.blocks[0].eval()
    twin = copy.deepcopy(net)
    taps = Taps(net, EVERY)
    torch.manual_seed(3)
    tapped = taps(image).logits
    torch.manual_seed(3)
    assert tapped is not None
    assert torch.equal(tapped, twin(image))
    assert [m.training for m in net.modules()] == [m.training for m in twin.modules()]
    assert net.state_dict().keys() == twin.state_dict().keys()
    assert hooks_of(net) == 0


def test_running_statistics_move_once_a_training_step() -> None:
    net = make("resnet8").train()
    Taps(net, EVERY)(images(16))
    assert net.layer1[0].bn1.num_batches_tracked == 1


def test_hooks_end_with_a_call_that_fails() -> None:
    net = make("resnet8")
    taps = Taps(net, EVERY)
    taps(images(16))
    with pytest.raises(RuntimeError):
        taps(torch.randn(2, 5, 16, 16))
    assert hooks_of(net) == 0


class Owner(nn.Module):
    net: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.net = make("resnet8")
        self.taps = Taps(self.net, EVERY)


def test_taps_own_nothing_and_follow_a_deep_copy_of_their_owner() -> None:
    owner, image = Owner(), images(16)
    owner.taps(image)
    assert all(key.startswith("net.") for key in owner.state_dict())
    twin = copy.deepcopy(owner)
    assert twin.taps.model is twin.net
    for parameter in twin.net.get_submodule("fc").parameters():
        nn.init.zeros_(parameter)
    logits, original = twin.taps(image).logits, owner.taps(image).logits
    assert logits is not None
    assert original is not None
    assert not logits.any()
    assert original.any()
    alone = copy.deepcopy(owner.net)
    assert torch.equal(alone(image), original)


@pytest.mark.parametrize(
    ("name", "kwargs"), [("resnet8", {}), ("wrn_16_1", {}), ("vit_tiny_patch16_224", VIT)]
)
def test_training_under_bfloat16_autocast_in_channels_last_gives_finite_gradients(
    name: str, kwargs: dict[str, Any]
) -> None:
    net = make(name, **kwargs).to(memory_format=torch.channels_last).train()
    image = images(32, count=4).to(memory_format=torch.channels_last)
    taps = Taps(net, ALL if kwargs else EVERY)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = taps(image)
    wide = outputs.to_float32()
    assert wide.classifier is not None
    assert wide.embedding is not None
    parts = [
        wide.classifier(wide.embedding),
        *wide.features,
        *wide.pre_activation,
        *(part for t in wide.tokens for part in t),
    ]
    parts += [part for a in wide.attention for part in (a.query, a.key, a.value)]
    assert all(part.dtype == torch.float32 for part in parts)
    torch.stack([part.square().mean() for part in parts]).sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in net.parameters() if p.requires_grad
    )


def test_a_teacher_under_no_grad_gives_tensors_without_a_graph() -> None:
    with torch.no_grad():
        outputs = Taps(make("resnet8"), EVERY)(images(16))
    assert outputs.embedding is not None
    assert not any(
        tensor.requires_grad
        for tensor in (outputs.embedding, *outputs.features, *outputs.pre_activation)
    )


def test_an_unknown_field_is_refused_with_the_closest_name() -> None:
    with pytest.raises(RequestError, match="Did you mean 'features'"):
        Taps(make("resnet8"), frozenset({"feature"}))


def test_a_compiled_model_runs_as_plain_code_when_more_than_logits_is_read() -> None:
    net, image = make("resnet8"), images(16)
    expected = net(image)
    net.compile(backend="eager")
    taps = Taps(net, EVERY)
    for _ in range(2):
        outputs = taps(image)
        assert outputs.logits is not None
        assert outputs.embedding is not None
        assert torch.equal(outputs.logits, expected)
