"""The working directory of the commands' tests, and a tiny teacher and student on the
digits.
"""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from tests.commands.conftest import _cwd
from tests.compression.tiny import Digits, build_tiny, train_model

__all__ = ["_cwd"]


@pytest.fixture(scope="session")
def digits() -> Digits:
    data = load_digits()
    image = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    return image, torch.tensor(data.target)


@pytest.fixture(scope="session")
def teacher(digits: Digits) -> nn.Module:
    model = build_tiny(seed=0)
    train_model(model, None, digits, steps=150, lr=3e-3)
    return model.eval()


@pytest.fixture
def student(teacher: nn.Module, digits: Digits) -> nn.Module:
    """A distilled student with outliers: a channel 400 times as large as the others,
    which the next layer scales back, so that the outputs stay the same.
    """
    model = build_tiny(seed=1)
    train_model(model, teacher, digits, steps=150, lr=3e-3)
    model.eval()
    with torch.no_grad():
        largest = int(model.bn1.weight.argmax())
        model.bn1.weight[largest] *= 400
        model.bn1.bias[largest] *= 400
        model.conv2.weight[:, largest] /= 400
    return model
