"""Several teachers whose embeddings are combined."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_app.config import InputSpec, RequestError
from kd_app.models.embedding_ensemble import (
    Combination,
    EmbeddingEnsemble,
    EmbeddingEnsembleModel,
    Moments,
    read_moments,
)
from kd_app.models.spec import ImageStats
from tests.builders import GRAY, teacher_folder
from tests.models.test_spec import request

PIXELS = InputSpec(1, 2, 2, (0.0,), (1.0,))
MOMENTS = (Moments([1.0, 2.0], 4.0), Moments([0.0, 0.0], 1e6))


class Flat(nn.Module):
    """Returns the first two pixels times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1)[:, :2] * self.factor


def _combine(by: Combination, image: Tensor) -> Tensor:
    members: dict[str, tuple[nn.Module, InputSpec]] = {
        name: (Flat(factor), PIXELS) for name, factor in (("a", 1.0), ("b", 1000.0))
    }
    output: Tensor = EmbeddingEnsembleModel(members, [1.0, 3.0], by, MOMENTS, PIXELS)(image)
    return output


def test_each_member_is_centered_scaled_and_weighted() -> None:
    image = torch.randn(3, 1, 2, 2)
    flat = image.flatten(1)[:, :2]
    first, second = (flat - torch.tensor([1.0, 2.0])) / 2, flat
    torch.testing.assert_close(_combine("mean", image), 0.25 * first + 0.75 * second)
    expected = torch.cat((0.25**0.5 * first, 0.75**0.5 * second), dim=1)
    torch.testing.assert_close(_combine("concatenate", image), expected)


def _build(folder: Path, by: Combination, *names: str) -> EmbeddingEnsemble:
    members, moments = {}, {}
    for number, name in enumerate(names):
        teacher_folder(folder / name, name)
        members[name] = request(role="teacher", checkpoint=folder / name)
        moments[name] = Moments([0.0] * (64, 512)[number], 1.0).to_json()
    (folder / "moments.json").write_text(json.dumps(moments), encoding="utf-8")
    weights = dict.fromkeys(names, 1.0)
    ensemble = EmbeddingEnsemble(members, weights, by, folder / "moments.json")
    ensemble.bind_images(ImageStats(1, 8, (0.3,), (0.4,)))
    ensemble.bind_embedding()
    return ensemble


def test_members_of_two_widths_are_joined_and_not_averaged(tmp_path: Path) -> None:
    ensemble = _build(tmp_path, "concatenate", "resnet8", "resnet10t")
    loaded = ensemble.build(GRAY, 0, seed=0)
    assert loaded.model(torch.zeros(2, 1, 8, 8)).shape == (2, 64 + 512)
    assert "divided by 1, its distance from the mean" in loaded.weights.notes[0]
    assert "resnet8: pooled, resnet10t: pooled; one after" in ensemble.describe_embedding()
    ensemble.combination = "mean"
    with pytest.raises(RequestError, match=r"resnet8 64, resnet10t 512.*by=concatenate"):
        ensemble.build(GRAY, 0, seed=0)


def test_the_moments_are_part_of_the_identity(tmp_path: Path) -> None:
    ensemble = _build(tmp_path, "concatenate", "resnet8")
    first = ensemble.build(GRAY, 0, seed=0).weights.sha256
    text = json.dumps({"resnet8": Moments([0.0] * 64, 2.0).to_json()})
    (tmp_path / "moments.json").write_text(text, encoding="utf-8")
    assert ensemble.build(GRAY, 0, seed=0).weights.sha256 != first


def test_a_member_with_random_weights_is_refused() -> None:
    members = {"a": request(role="teacher", name="resnet8")}
    ensemble = EmbeddingEnsemble(members, {"a": 1.0}, "mean")
    with pytest.raises(RequestError, match=r"member a \(resnet8\) has random weights"):
        ensemble.bind_embedding()


OTHERS: dict[str, Any] = {
    "describes 'a', and the teacher's members are 'a', 'b'": {"a": MOMENTS[0].to_json()},
    "mean: Value should have at least 1 item": {"a": {"mean": [], "variance": 1.0}},
    "Input should be less than or equal to": {"a": {"mean": [1e300], "variance": 1.0}},
    "Input should be greater than or equal to": {"a": {"mean": [1.0], "variance": 1e-300}},
}


@pytest.mark.parametrize("message", OTHERS)
def test_moments_of_other_teachers_are_refused(message: str, tmp_path: Path) -> None:
    path = tmp_path / "moments.json"
    path.write_text(json.dumps(OTHERS[message]), encoding="utf-8")
    with pytest.raises(RequestError, match=message):
        read_moments(path, ["a", "b"])


def test_moments_of_another_width_are_refused() -> None:
    model = EmbeddingEnsembleModel(
        {"a": (Flat(1.0), PIXELS)}, [1.0], "concatenate", [Moments([0.5], 1.0)], PIXELS
    )
    with pytest.raises(RequestError, match=r"member a has 2 numbers, and its recorded mean has 1"):
        model(torch.zeros(3, 1, 2, 2))
