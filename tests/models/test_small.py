import itertools
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from timm.optim._optim_factory import create_optimizer_v2

import kd_app.models.small
from kd_app.models.cost import count_params

LITERATURE = {
    "resnet8": (1, (16, 16, 32, 64)),
    "resnet14": (2, (16, 16, 32, 64)),
    "resnet20": (3, (16, 16, 32, 64)),
    "resnet32": (5, (16, 16, 32, 64)),
    "resnet44": (7, (16, 16, 32, 64)),
    "resnet56": (9, (16, 16, 32, 64)),
    "resnet110": (18, (16, 16, 32, 64)),
    "resnet8_narrow": (1, (3, 3, 6, 12)),
    "resnet8x4": (1, (32, 64, 128, 256)),
    "resnet32x4": (5, (32, 64, 128, 256)),
    "wrn_16_1": (2, (16, 16, 32, 64)),
    "wrn_16_2": (2, (16, 32, 64, 128)),
    "wrn_28_2": (4, (16, 32, 64, 128)),
    "wrn_40_1": (6, (16, 16, 32, 64)),
    "wrn_40_2": (6, (16, 32, 64, 128)),
}
PUBLISHED_MILLIONS = {
    "resnet20": 0.28,
    "resnet32": 0.47,
    "resnet44": 0.67,
    "resnet56": 0.86,
    "resnet110": 1.74,
    "resnet8x4": 1.23,
    "resnet32x4": 7.43,
    "wrn_16_2": 0.70,
    "wrn_40_1": 0.57,
    "wrn_40_2": 2.26,
}


def make(name: str, **kwargs: Any) -> Any:
    return timm.create_model(name, **kwargs)


def params_by_hand(name: str, classes: int) -> int:
    """Compute the parameters from the definition: convolutions, two per norm and
    channel, the classifier.
    """
    num_blocks, widths = LITERATURE[name]
    wide = name.startswith("wrn")
    total = (
        9 * 3 * widths[0]
        + (2 * widths[-1] if wide else 2 * widths[0])
        + widths[-1] * classes
        + classes
    )
    for stage, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        convolutions = 9 * inputs * outputs + (2 * num_blocks - 1) * 9 * outputs**2
        norms = (
            2 * (inputs + (2 * num_blocks - 1) * outputs) if wide else 2 * 2 * num_blocks * outputs
        )
        projects = stage > 0 or inputs != outputs
        total += convolutions + norms + projects * (inputs * outputs + (0 if wide else 2 * outputs))
    return total


@pytest.mark.parametrize("name", LITERATURE)
def test_every_net_of_the_literature_has_its_parameters_and_gives_logits(name: str) -> None:
    net = make(name).eval()
    assert count_params(net) == params_by_hand(name, 100)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 100)


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_parameters_are_those_that_papers_print(name: str) -> None:
    assert round(params_by_hand(name, 100) / 1e6, 2) == PUBLISHED_MILLIONS[name]


def test_resnet8_for_ten_classes_has_78_thousand_parameters() -> None:
    assert count_params(make("resnet8", num_classes=10)) == 78_042


def test_depth_and_widths_can_be_set() -> None:
    assert count_params(make("resnet8", num_blocks=2)) == count_params(make("resnet14"))
    assert count_params(make("wrn_16_1", widths=[16, 32, 64, 128])) == count_params(
        make("wrn_16_2")
    )


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1"])
@pytest.mark.parametrize("side", [8, 28])
def test_gray_images_of_8_and_28_pixels_work(name: str, side: int) -> None:
    net = make(name, in_chans=1, num_classes=10)
    assert net(torch.randn(2, 1, side, side)).shape == (2, 10)


@pytest.mark.parametrize("name", ["resnet14", "wrn_16_2"])
def test_intermediates_are_the_stages_and_lead_to_the_same_logits(name: str) -> None:
    net = make(name, num_classes=5).eval()
    image = torch.randn(2, 3, 32, 32)
    last, maps = net.forward_intermediates(image)
    assert [tuple(one.shape[1:]) for one in maps] == [
        (info["num_chs"], 32 // info["reduction"], 32 // info["reduction"])
        for info in net.feature_info
    ]
    assert torch.equal(net.forward_head(last), net(image))
    assert torch.equal(last, net.forward_features(image))
    embedding = net.forward_head(last, pre_logits=True)
    assert embedding.shape == (2, net.head_hidden_size)
    assert torch.equal(net.get_classifier()(embedding), net(image))


@pytest.mark.parametrize("name", ["resnet14", "wrn_16_2"])
def test_indices_stop_early_and_norm_choose_maps(name: str) -> None:
    net = make(name, num_classes=5).eval()
    image = torch.randn(2, 3, 32, 32)
    last, maps = net.forward_intermediates(image)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            net.forward_intermediates(image, indices=2, intermediates_only=True),
            maps[2:],
            strict=True,
        )
    )
    net.layer3.register_forward_hook(lambda *_: pytest.fail("a stage after the last index ran"))
    (second,) = net.forward_intermediates(
        image, indices=[2], stop_early=True, intermediates_only=True
    )
    assert torch.equal(second, maps[2])
    net.layer3._forward_hooks.clear()
    (normed,) = net.forward_intermediates(image, indices=(-1,), norm=True, intermediates_only=True)
    assert torch.equal(normed, last)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_2"])
def test_features_only_gives_three_stages(name: str) -> None:
    net = make(name, features_only=True, in_chans=1)
    maps = net(torch.randn(2, 1, 28, 28))
    assert [one.shape[1] for one in maps] == net.feature_info.channels()
    assert (
        [one.shape[-1] for one in maps]
        == [28, 14, 7]
        == [28 // r for r in net.feature_info.reduction()]
    )


def test_a_saved_folder_loads_with_its_classes_and_channels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = make(
        "resnet8",
        in_chans=1,
        num_classes=10,
        pretrained_cfg_overlay={"input_size": (1, 28, 28), "num_classes": 10},
    ).eval()
    save_for_hf(net, str(tmp_path), safe_serialization=True)
    again = make(f"local-dir:{tmp_path}", pretrained=True).eval()
    image = torch.randn(2, 1, 28, 28)
    assert torch.equal(net(image), again(image))
    assert again.pretrained_cfg["input_size"] == (1, 28, 28)


def test_weights_of_another_class_count_and_gray_input_keep_the_rest(tmp_path: Path) -> None:
    net = make("wrn_16_1", num_classes=10)
    save_for_hf(net, str(tmp_path), model_config={"num_classes": 10}, safe_serialization=True)
    again = make(f"local-dir:{tmp_path}", pretrained=True, num_classes=3, in_chans=1)
    assert torch.equal(again.layer3[1].conv2.weight, net.layer3[1].conv2.weight)
    torch.testing.assert_close(again.conv1.weight, net.conv1.weight.sum(dim=1, keepdim=True))
    assert again.fc.out_features == 3


def test_the_classifier_can_be_replaced_and_removed() -> None:
    net = make("resnet8")
    image = torch.randn(2, 3, 32, 32)
    net.reset_classifier(7)
    assert net(image).shape == (2, 7)
    net.reset_classifier(7, "catavgmax")
    assert net.head_hidden_size == 128
    assert net(image).shape == (2, 7)
    net.reset_classifier(0, "avg")
    assert net(image).shape == (2, net.num_features)


def test_dropout_acts_before_the_classifier_in_training_alone() -> None:
    net = make("resnet8", drop_rate=0.5).eval()
    features = torch.rand(64, 64, 8, 8) + 1
    assert (net.forward_head(features, pre_logits=True) > 0).all()
    dropped = (net.train().forward_head(features, pre_logits=True) == 0).float().mean()
    assert 0.4 < dropped < 0.6


def test_layer_decay_scales_the_rate_from_the_stem_to_the_head() -> None:
    net = make("resnet14")
    optimizer = create_optimizer_v2(net, "sgd", lr=1.0, layer_decay=0.5)
    rate = {
        id(p): group["lr"] * group["lr_scale"]
        for group in optimizer.param_groups
        for p in group["params"]
    }
    stem, first, last, head = (
        rate[id(p)]
        for p in (
            net.conv1.weight,
            net.layer1[0].conv1.weight,
            net.layer3[1].conv1.weight,
            net.fc.weight,
        )
    )
    assert stem < first < last < head == 1.0


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_2"])
def test_every_parameter_has_a_gradient_under_autocast_and_channels_last(name: str) -> None:
    net = make(name, num_classes=10).to(memory_format=torch.channels_last).train()
    image = torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        net(image).float().square().mean().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0
        for p in net.parameters()
    )


def test_wide_nets_are_pre_activation_and_the_others_post_activation() -> None:
    image = torch.randn(2, 3, 16, 16)
    for name, negative in (("resnet14", False), ("wrn_16_1", True)):
        net = make(name).eval()
        _, maps = net.forward_intermediates(image)
        assert all(bool((one < 0).any()) is negative for one in maps)
        assert not (net.forward_features(image) < 0).any()


def test_the_names_are_listed_by_timm() -> None:
    assert (
        set(LITERATURE)
        == set(timm.list_models(module="residual"))
        == set(kd_app.models.small.residual.default_cfgs)
    )
