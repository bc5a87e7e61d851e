"""Tests of the gradients of convolutions on a CPU."""

from copy import deepcopy
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from kd_app.training.cpu_convolutions import correct_convolutions

MIXED, TRUE, FULL = (
    SimpleNamespace(device=torch.device("cpu"), precision=precision)
    for precision in ("bf16-mixed", "bf16-true", "32-true")
)


def differentiate(model: nn.Module, image: Tensor, settings: Any) -> list[Tensor]:
    with correct_convolutions(settings, model):
        enabled = settings is MIXED
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            output = model(image)
        assert output.dtype == (torch.float32 if settings is FULL else torch.bfloat16)
        return list(torch.autograd.grad(output.float().sum(), list(model.parameters())))


def fill_free_memory_with_nan() -> None:
    """Let the next tensors of about these sizes lie where NaN was."""
    for length in (2 * 9 * 16 * 32, 9 * 16 * 32, 9 * 16 * 16, 9 * 16):
        tensors = [torch.full((length,), float("nan")) for _ in range(8)]
        del tensors


@pytest.mark.parametrize("settings", [MIXED, TRUE])
@pytest.mark.parametrize(
    ("size", "arguments"),
    [
        ((1, 1), {"kernel_size": 3, "stride": 2, "padding": 1}),
        ((1, 1), {"kernel_size": 5, "padding": "same"}),
        ((2, 1), {"kernel_size": 3, "stride": 2, "padding": 1}),
        ((2, 1), {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 16}),
        ((3, 3), {"kernel_size": 3, "stride": 4, "padding": 1}),
        ((2, 2), {"kernel_size": 3, "padding": 2, "dilation": 2}),
        ((1, 2), {"kernel_size": (5, 3), "padding": (2, 1), "bias": False}),
        ((4, 4), {"kernel_size": 2, "stride": 5, "padding": 1}),
    ],
)
def test_the_gradient_of_an_entry_that_meets_padding_alone_is_zero(
    settings: Any, size: tuple[int, int], arguments: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(16, 32, **arguments)
    image = torch.randn(8, 16, *size).bfloat16().float()
    expected = differentiate(deepcopy(model), image, FULL)
    if settings is TRUE:
        model, image = model.bfloat16(), image.bfloat16()
    fill_free_memory_with_nan()
    for ours, theirs in zip(differentiate(model, image, settings), expected, strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=2e-2, atol=2e-2)
        assert (ours[theirs == 0] == 0).all()


def test_small_images_train_without_nan() -> None:
    model = timm.create_model("test_efficientnet", num_classes=3)
    fill_free_memory_with_nan()
    gradients = differentiate(model, torch.randn(16, 3, 16, 16), MIXED)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_copy_of_a_model_computes_with_its_own_weights() -> None:
    model = nn.Conv2d(3, 4, 3, padding=1)
    with correct_convolutions(MIXED, model):  # type: ignore[arg-type]
        copied = deepcopy(model)
        nn.init.zeros_(copied.weight)
        nn.init.zeros_(copied.bias)  # type: ignore[arg-type]
        assert not copied(torch.ones(1, 3, 1, 1)).any()
        assert model(torch.ones(1, 3, 1, 1)).any()
    assert "forward" not in vars(model)


def test_a_stride_over_few_channels_neither_crashes_nor_changes_the_result() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 64, 1, stride=2).to(memory_format=torch.channels_last)
    image = torch.randn(2, 3, 161, 160)
    expected = differentiate(deepcopy(model).to(memory_format=torch.contiguous_format), image, FULL)
    actual = differentiate(model, image.to(memory_format=torch.channels_last), FULL)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-2)


def test_the_entries_that_meet_the_image_compute_what_the_whole_kernel_computes() -> None:
    torch.manual_seed(0)
    settings = product((1, 2, 5), (1, 2, 3, 5), (1, 2, 3), (0, 1, 2, 3), (1, 2))
    count = 0
    for length, size, stride, padding, dilation in settings:
        if length + 2 * padding < dilation * (size - 1) + 1:
            continue
        whole = nn.Conv2d(2, 2, size, stride, padding, dilation).double()
        image = torch.randn(1, 2, length, length).double().requires_grad_()
        inputs = [image, whole.weight]
        expected = whole(image)
        with correct_convolutions(TRUE, whole):  # type: ignore[arg-type]
            actual = whole(image)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            torch.autograd.grad(actual.square().sum(), inputs),
            torch.autograd.grad(expected.square().sum(), inputs),
        )
        count += 1
    assert count > 150
