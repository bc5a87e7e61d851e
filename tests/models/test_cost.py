from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

import kd_app.models.small  # noqa: F401
from kd_app.config import InputSpec
from kd_app.models.cost import count_macs, count_params


def input_spec(channels: int, side: int) -> InputSpec:
    return InputSpec(channels, side, side, (0.0,) * channels, (1.0,) * channels)


def test_a_linear_net_costs_its_matrix() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 10))
    assert count_params(net) == 3 * 4 * 4 * 10 + 10
    assert count_macs(net, input_spec(3, 4)) == 3 * 4 * 4 * 10


def test_a_convolution_costs_kernel_times_channels_times_places() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4),
    )
    assert count_params(net) == (9 * 8 + 8) + (8 + 8) + (9 * 2 * 8 + 8)
    assert count_macs(net, input_spec(1, 8)) == 9 * 1 * 8 * 64 + 9 * 2 * 8 * 16


class SelfAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2)[:, None]
        return functional.scaled_dot_product_attention(rows, rows, rows)


def test_fused_attention_costs_its_two_matrix_products() -> None:
    assert count_macs(SelfAttention(), input_spec(5, 8)) == 2 * 5 * 5 * 64


def by_hand(num_blocks: int, widths: tuple[int, int, int, int], side: int, classes: int) -> int:
    """Compute the multiply-adds of a small-image net from its definition."""
    total = 9 * 3 * widths[0] * side**2
    for inputs, outputs, stride in zip(widths, widths[1:], (1, 2, 2), strict=False):
        side //= stride
        total += (9 * inputs * outputs + (2 * num_blocks - 1) * 9 * outputs**2) * side**2
        total += inputs * outputs * side**2 if stride > 1 or inputs != outputs else 0
    return total + widths[-1] * classes


@pytest.mark.parametrize(
    ("name", "num_blocks", "widths"),
    [
        ("resnet8", 1, (16, 16, 32, 64)),
        ("wrn_16_2", 2, (16, 32, 64, 128)),
        ("resnet8x4", 1, (32, 64, 128, 256)),
    ],
)
def test_small_nets_cost_the_sum_of_their_layers(
    name: str, num_blocks: int, widths: tuple[int, int, int, int]
) -> None:
    net = timm.create_model(name, num_classes=10)
    assert count_macs(net, input_spec(3, 32)) == by_hand(num_blocks, widths, 32, 10)


def test_a_vision_transformer_costs_projections_and_attention() -> None:
    net: Any = timm.create_model("test_vit", img_size=64, num_classes=10)
    tokens, width, depth = 17, 64, 6
    block = (
        4 * tokens * width**2
        + 2 * tokens**2 * width
        + 2 * tokens * width * net.blocks[0].mlp.fc1.out_features
    )
    assert (
        count_macs(net, input_spec(3, 64))
        == depth * block + 16 * (16 * 16 * 3) * width + width * 10
    )


def test_a_shared_parameter_counts_once() -> None:
    layer = nn.Linear(4, 4)
    assert count_params(nn.Sequential(layer, nn.ReLU(), layer)) == 20


def test_counting_leaves_the_model_as_it_was() -> None:
    net: Any = timm.create_model("resnet8", num_classes=10).train()
    net.layer2.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    random = torch.get_rng_state()
    count_macs(net, input_spec(3, 28))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


def test_a_half_precision_model_counts_the_same() -> None:
    net = timm.create_model("resnet8", num_classes=10)
    full = count_macs(net, input_spec(3, 32))
    assert count_macs(net.bfloat16(), input_spec(3, 32)) == full
