"""A small exported model, written once."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import nn

import kd_app.models.small
from kd_app.config import Decoding, InputSpec
from kd_app.deployment.export import export
from kd_app.deployment.formats.onnx import Onnx

assert kd_app.models.small  # registers resnet8
PIXELS = InputSpec(
    3, 16, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), crop=0.875, interpolation="bicubic"
)
DECODING = Decoding(3, 24)
CLASSES = tuple("abcde")


@pytest.fixture(scope="session")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (8, 3, 16, 16), dtype=np.uint8)


@pytest.fixture(scope="session")
def net() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet8", num_classes=len(CLASSES), in_chans=3).eval()


@pytest.fixture(scope="session")
def onnx_file(
    net: nn.Module, images: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """``model.onnx`` with its manifest; tests must not change it."""
    folder = tmp_path_factory.mktemp("exported")
    form = Onnx(opset=18, tolerance=1e-4)
    return export(
        net,
        form,
        folder,
        stem="model",
        input_spec=PIXELS,
        decoding=DECODING,
        classes=CLASSES,
        license="mit",
        calibration=[],
        images=images,
    )
