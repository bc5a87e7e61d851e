"""A tiny model on the digits, and how it is trained, quantized and measured."""

import torch
from torch import Tensor, fx, nn

from kd_app.compression.graph import calibrate, convert, prepare, trace
from kd_app.config import InputSpec

PIXELS = InputSpec(1, 8, 8, (0.0,), (1.0,))
Digits = tuple[Tensor, Tensor]
"""Images in 0..1, and labels."""


class Tiny(nn.Module):
    """Two convolutions with batch norms, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = (
            nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
        )
        self.fc = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        y: Tensor = self.fc(x.flatten(1))
        return y


def build_tiny(seed: int) -> Tiny:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tiny()


def train_model(
    model: nn.Module, teacher: nn.Module | None, digits: Digits, *, steps: int, lr: float
) -> None:
    """Train on the labels, or on the probabilities of the teacher if there is one."""
    image, target = digits[0][:1200], digits[1][:1200]
    optimizer, order = torch.optim.Adam(model.parameters(), lr=lr), torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(1200, (64,), generator=order)
        soft = teacher(image[rows]).detach().softmax(dim=1) if teacher else target[rows]
        nn.functional.cross_entropy(model(image[rows]), soft).backward()
        optimizer.step()
        optimizer.zero_grad()


def top1(model: nn.Module, digits: Digits) -> float:
    with torch.no_grad():
        return float((model(digits[0][1200:]).argmax(dim=1) == digits[1][1200:]).float().mean())


def list_batches(digits: Digits) -> list[Tensor]:
    return list(digits[0][:256].split(64))


def quantize_after_training(
    model: nn.Module, digits: Digits, *, float_units: list[str], per_channel: bool
) -> fx.GraphModule:
    graph = trace(model, PIXELS)
    prepared = prepare(graph, float_units=float_units, per_channel=per_channel, trainable=False)
    calibrate(prepared, list_batches(digits))
    return convert(prepared)
