"""Half of the labels are wrong, and a teacher knows the true classes, so that the
teacher's outputs have information that the labels lack.
"""

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from kd_app.data.arrays import Arrays
from kd_app.data.digits import Digits


class Mislabeled(Digits):
    """The digits, half of them with random labels."""

    def load(self) -> Arrays:
        pixels, target, split = super().load()
        random = np.random.default_rng(0)
        return (
            pixels,
            np.where(random.random(len(target)) < 0.5, random.integers(0, 10, len(target)), target),
            split,
        )


def true_labels() -> np.ndarray:
    return Digits().load()[1]


class Oracle(nn.Module):
    """A perfect classifier: the class of the most correlated known digit."""

    known: Tensor
    label: Tensor

    def __init__(self) -> None:
        super().__init__()
        pixels, target, _ = Digits().load()
        self.register_buffer("known", _standard(torch.from_numpy(pixels).float()))
        self.register_buffer("label", torch.from_numpy(target))

    def forward(self, image: Tensor) -> Tensor:
        nearest = (_standard(image) @ self.known.T).argmax(dim=1)
        return 10.0 * nn.functional.one_hot(self.label[nearest], 10).to(image.dtype)


def _standard(image: Tensor) -> Tensor:
    flat = image.flatten(1)
    flat = flat - flat.mean(dim=1, keepdim=True)
    return cast(Tensor, flat / flat.norm(dim=1, keepdim=True))


class Perceptron(nn.Module):
    """Large enough to memorize wrong labels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.layers(image))
