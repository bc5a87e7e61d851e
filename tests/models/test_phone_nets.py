"""The VGG and mobile nets, in the small-image variants of the literature."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

import kd_app.models.small
from kd_app.models.cost import count_params
from kd_app.models.small.mobile import InvertedResidual, ShuffleUnit, ShuffleUnitV2, shuffle
from kd_app.models.taps import Taps

PUBLISHED = {
    "vgg8": 3_965_028,
    "vgg13_small": 9_462_180,
    "mobilenetv2_half": 812_836,
    "shufflenet_v1": 949_258,
    "shufflenet_v2": 1_355_528,
}
"""Parameters for 100 classes. Tables in the literature: 3.97, 9.46, 0.81, 0.95 and 1.36
million.
"""
MAPS = {
    "vgg8": [(128, 16), (256, 8), (512, 4)],
    "vgg13_small": [(128, 16), (256, 8), (512, 4)],
    "mobilenetv2_half": [(12, 16), (16, 8), (48, 4), (160, 2)],
    "shufflenet_v1": [(240, 16), (480, 8), (960, 4)],
    "shufflenet_v2": [(116, 16), (232, 8), (464, 4)],
}


@pytest.fixture(scope="module", params=PUBLISHED)
def net(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return timm.create_model(request.param).eval()


def test_parameters_are_the_published_ones_to_the_last(net: Any) -> None:
    assert count_params(net) == PUBLISHED[net.default_cfg["architecture"]]


def test_maps_embedding_and_logits_are_tapped(net: Any) -> None:
    outputs = Taps(net, frozenset({"logits", "embedding", "classifier", "features"}))(
        torch.randn(2, 3, 32, 32)
    )
    assert outputs.embedding is not None
    assert outputs.logits is not None
    assert torch.equal(net.fc(outputs.embedding), outputs.logits)
    assert [(one.shape[1], one.shape[2]) for one in outputs.features][
        -len(MAPS[net.default_cfg["architecture"]]) :
    ] == MAPS[net.default_cfg["architecture"]]


def test_every_parameter_has_a_gradient(net: Any) -> None:
    net(torch.randn(2, 3, 16, 16)).square().mean().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters()
    )


@pytest.mark.parametrize("name", ["vgg8", "mobilenetv2_half", "shufflenet_v1", "shufflenet_v2"])
def test_gray_images_of_8_pixels_and_ten_classes_work(name: str) -> None:
    assert timm.create_model(name, in_chans=1, num_classes=10).eval()(
        torch.randn(2, 1, 8, 8)
    ).shape == (2, 10)


@pytest.mark.parametrize("name", ["vgg8", "mobilenetv2_half", "shufflenet_v1"])
def test_features_only_gives_the_stages_that_the_configuration_names(name: str) -> None:
    net: Any = timm.create_model(name, features_only=True)
    maps = net(torch.randn(2, 3, 32, 32))
    assert [one.shape[1] for one in maps] == net.feature_info.channels()
    assert [32 // one.shape[-1] for one in maps] == net.feature_info.reduction()


def test_shuffling_interleaves_the_groups() -> None:
    channels = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert shuffle(channels, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert torch.equal(shuffle(shuffle(channels, 3), 2), channels)


def silence(unit: Any, branch: nn.Sequential) -> Any:
    """Return the unit in eval mode, with one branch that returns zeros."""
    for module in branch:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)
    return unit.eval()


def test_an_inverted_block_adds_its_input_only_where_the_shape_stays() -> None:
    image = torch.randn(2, 8, 4, 4)
    same, wider, strided = (
        silence(unit, unit.body)
        for unit in (
            InvertedResidual(8, 8, 1),
            InvertedResidual(8, 12, 1),
            InvertedResidual(8, 8, 2),
        )
    )
    assert torch.equal(same(image), image)
    assert not wider(image).any()
    assert not strided(image).any()


def test_a_grouped_unit_adds_its_input_and_at_stride_2_lays_the_pooled_input_beside() -> None:
    image = torch.rand(2, 24, 4, 4)
    same, strided = (
        silence(unit, unit.conv3)
        for unit in (ShuffleUnit(24, 24, 1), ShuffleUnit(24, 48, 2, first=1))
    )
    assert torch.equal(same(image), image)
    assert torch.equal(strided(image)[:, 24:], nn.functional.avg_pool2d(image, 3, 2, 1))
    assert not strided(image)[:, :24].any()


def test_a_split_unit_hands_on_half_of_the_channels() -> None:
    image, unit = torch.rand(2, 8, 4, 4), ShuffleUnitV2(8, 8, 1)
    assert torch.equal(silence(unit, unit.far)(image)[:, ::2], image[:, :4])
    assert ShuffleUnitV2(8, 12, 2)(image).shape == (2, 12, 2, 2)


def test_timm_s_own_vgg13_is_still_there() -> None:
    assert timm.is_model("vgg13")
    assert timm.models.model_entrypoint("vgg13").__module__ == "timm.models.vgg"
    assert set(timm.list_models(module="plain")) == set(kd_app.models.small.plain.default_cfgs)
    assert set(timm.list_models(module="mobile")) == set(kd_app.models.small.mobile.default_cfgs)
