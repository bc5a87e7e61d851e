"""Weights with NaN or infinity are found, whatever holds them."""

import pytest
import torch
from torch import nn

from kd_app.models.finite import describe_nonfinite, find_nonfinite


def build() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    model.register_buffer("cache", torch.tensor(torch.nan), persistent=False)
    return model


def test_a_sound_model_and_its_mask_pass() -> None:
    assert find_nonfinite(build()) == {}
    assert find_nonfinite(build().bfloat16()) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("0.weight", torch.nan),
        ("0.bias", -torch.inf),
        ("1.running_var", torch.inf),
        ("mask", torch.nan),
    ],
)
def test_parameters_statistics_and_buffers_are_checked(name: str, value: float) -> None:
    model = build()
    tensor = model.state_dict()[name]
    tensor.view(-1)[0] = value
    assert find_nonfinite(model) == {name: 1}
    assert describe_nonfinite(find_nonfinite(model)) == f"{name}: 1 value"
