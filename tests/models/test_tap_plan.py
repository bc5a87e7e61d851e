import math
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.volo import VOLO
from timm.models.xcit import Xcit
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock as TorchvisionBlock
from torchvision.models.resnet import ResNet as TorchvisionResNet

import kd_app.models.small  # noqa: F401
from kd_app.config import RequestError
from kd_app.models.tap_plan import choose_stages
from kd_app.models.taps import Taps

EVERY = frozenset({"logits", "embedding", "classifier", "features", "pre_activation"})
Make = str | type[nn.Module]


def make(what: Make, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return (
        timm.create_model(what, num_classes=7, **kwargs)
        if isinstance(what, str)
        else what(num_classes=7, **kwargs)
    ).eval()


def images(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("what", "kwargs", "side", "read", "why", "other"),
    [
        ("resnet8", {}, 16, "attention", "not call torch's scaled_dot_product", "pre_activation"),
        ("resnet8", {}, 16, "tokens", "CNN or a pyramid", "features"),
        (
            SwinTransformer,
            {
                "img_size": 32,
                "window_size": 2,
                "embed_dim": 16,
                "depths": (1, 1),
                "num_heads": (1, 2),
            },
            32,
            "attention",
            "not call torch's scaled_dot_product",
            "features",
        ),
        (
            MlpMixer,
            {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_blocks": 2},
            32,
            "attention",
            "not call torch's scaled_dot_product",
            "tokens",
        ),
        (
            Xcit,
            {"img_size": 32, "embed_dim": 48, "num_heads": 3, "depth": 2},
            32,
            "attention",
            "attends to channels",
            "tokens",
        ),
        (
            VOLO,
            {
                "img_size": 32,
                "layers": (1, 1, 1, 1),
                "embed_dims": (32, 32, 32, 32),
                "num_heads": (2, 2, 2, 2),
            },
            32,
            "classifier",
            "auxiliary head",
            "embedding",
        ),
    ],
)
def test_a_field_that_a_model_lacks_is_refused_with_the_reason_and_what_it_has(
    what: Make, kwargs: dict[str, Any], side: int, read: str, why: str, other: str
) -> None:
    with pytest.raises(RequestError, match=rf"{read}: .*{why}.*Available: .*{other}"):
        Taps(make(what, **kwargs), frozenset({"logits", read}))(images(side))


class Foreign(nn.Module):
    """A user-provided net: nested, partly functional, with a shared in-place activation
    and no interface but logits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict(
            {f"conv{n}": nn.Conv2d(3 * 2**n, 6 * 2**n, 3, stride=2, padding=1) for n in range(3)}
        )
        self.act = nn.ReLU(inplace=True)
        self.hidden, self.score = nn.Linear(24, 10), nn.Linear(10, 7)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.body.values():
            x = self.act(layer(x))
        hidden = functional.gelu(self.hidden(x.mean(dim=(2, 3))))
        return self.score(hidden)  # type: ignore[no-any-return]


def test_embedding_and_maps_of_a_module_without_an_interface() -> None:
    net, image = Foreign().eval(), images(16)
    outputs = Taps(net, frozenset({"logits", "embedding", "classifier", "features"}))(image)
    assert outputs.logits is not None
    assert torch.equal(outputs.logits, net(image))
    assert outputs.embedding is not None
    assert torch.equal(net.score(outputs.embedding), outputs.logits)
    assert outputs.classifier is net.score
    assert [tuple(one.shape[1:]) for one in outputs.features] == [(6, 8, 8), (12, 4, 4), (24, 2, 2)]


def test_a_torchvision_resnet_has_the_same_stages_as_timm_s() -> None:
    net, twin = (
        TorchvisionResNet(TorchvisionBlock, [1, 2, 1, 1], num_classes=7).eval(),
        make(ResNet, block=BasicBlock, layers=(1, 2, 1, 1)),
    )
    twin.load_state_dict(net.state_dict())
    ours, theirs = Taps(net, EVERY)(images(64)), Taps(twin, EVERY)(images(64))
    assert len(ours.features) == len(ours.pre_activation) == 4
    for a, b in zip(
        [*ours.features, *ours.pre_activation],
        [*theirs.features, *theirs.pre_activation],
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(ours.embedding, theirs.embedding)


def test_a_module_without_maps_or_a_classifier_is_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 7), nn.Softplus())
    with pytest.raises(
        RequestError,
        match=(
            r"embedding: no linear classifier.*features: no module returns a map.*"
            r"Available: logits"
        ),
    ):
        Taps(net, frozenset({"embedding", "features"}))(images(8))


def test_a_module_without_a_row_of_logits_is_refused() -> None:
    with pytest.raises(RequestError, match=r"returns \(1, 4, 8, 8\).*expected logits"):
        Taps(nn.Conv2d(3, 4, 1), frozenset({"features"}))(images(8))


@given(st.integers(1, 64))
def test_blocks_of_one_stride_are_tapped_at_the_ends_of_equal_parts(depth: int) -> None:
    chosen = choose_stages([16] * depth)
    assert chosen == tuple(sorted({math.ceil(depth * quarter / 4) - 1 for quarter in (1, 2, 3, 4)}))
    assert chosen[-1] == depth - 1
    assert len(chosen) == min(depth, 4)


@given(
    st.lists(st.sampled_from([1, 2, 4, 8, 16, 32]), min_size=2)
    .map(sorted)
    .filter(lambda strides: len(set(strides)) > 1)
)
def test_of_several_strides_the_last_map_of_the_four_deepest_is_tapped(strides: list[int]) -> None:
    chosen = choose_stages(strides)
    assert [strides[index] for index in chosen] == sorted(set(strides))[-4:]
    assert all(index + 1 == len(strides) or strides[index + 1] > strides[index] for index in chosen)
