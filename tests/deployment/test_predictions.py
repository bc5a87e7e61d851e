"""Predictions of a model on a split, and throughput."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kd_app.config import InputSpec
from kd_app.data.batch import Batch
from kd_app.data.normalize import normalize
from kd_app.deployment.predictions import measure_throughput, predict
from kd_app.metrics.record import Predictions, match_embeddings

CPU = torch.device("cpu")
PIXELS = InputSpec(3, 4, 4, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


class Noted(nn.Module):
    """Returns the mean of each channel; records its inputs and calls."""

    def __init__(
        self, name: str = "", seconds: float = 0.0, diary: list[str] | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.name, self.seconds, self.diary = name, seconds, [] if diary is None else diary
        self.inputs: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.diary.append(self.name)
        self.inputs.append(image)
        time.sleep(self.seconds)
        return image.mean(dim=(2, 3)) * self.weight


def batches(*sizes: int, uint8: bool = False) -> list[Batch]:
    """Batches in random order; all pixels of an image are its index."""
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(0))
    result = []
    for index in order.split(list(sizes)):
        image = index.view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
        result.append(Batch(image.to(torch.uint8) if uint8 else image.float(), index % 3, index))
    return result


@pytest.mark.parametrize("training", [True, False])
def test_predictions_have_the_order_and_index_of_the_images(training: bool) -> None:
    data = batches(5, 5, 2)
    predictions = predict(Noted().train(training), data, PIXELS, device=CPU)
    assert predictions.index.tolist() == torch.cat([batch.index for batch in data]).tolist()
    assert predictions.logits.dtype == np.float32
    np.testing.assert_array_equal(
        predictions.logits, np.repeat(predictions.index[:, None], 3, axis=1)
    )
    np.testing.assert_array_equal(predictions.target, predictions.index % 3)


def test_dropout_and_batch_norm_are_in_eval_mode() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 2))
    model(torch.randn(64, 3, 4, 4) + 5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = predict(model.train(), batches(12), PIXELS, device=CPU)
    parts = predict(model.train(), batches(1, 4, 7), PIXELS, device=CPU)
    np.testing.assert_allclose(whole.logits, parts.logits, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_uint8_images_are_normalized_and_float_images_are_not() -> None:
    raw, ready = batches(3, uint8=True), batches(3)
    model = Noted()
    predict(model, raw, PIXELS, device=CPU)
    predict(model, ready, PIXELS, device=CPU)
    torch.testing.assert_close(
        model.inputs[0], normalize(raw[0].image, PIXELS, torch.contiguous_format)
    )
    assert torch.equal(model.inputs[1], ready[0].image)


def test_a_mixed_label_counts_as_its_largest_share() -> None:
    shares = torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.1, 0.4]])
    predictions = predict(
        Noted(), [Batch(torch.zeros(2, 3, 4, 4), shares, torch.arange(2))], PIXELS, device=CPU
    )
    assert predictions.target.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("limit", "read"),
    [(None, 4), (1, 1), (3, 3), (9, 4), (0.5, 2), (0.99, 3), (1.0, 4), (0.01, 1), (2.0, 2)],
)
def test_a_limit_is_a_number_or_share_of_batches_and_at_least_one(
    limit: float | None, read: int
) -> None:
    data = batches(2, 2, 2, 2)
    counts: list[int] = []
    predictions = predict(Noted(), data, PIXELS, device=CPU, limit=limit, on_batch=counts.append)
    assert predictions.index.tolist() == torch.cat([batch.index for batch in data[:read]]).tolist()
    assert counts == list(range(1, read + 1))


def test_no_batch_is_read_beyond_the_limit() -> None:
    def endless() -> Iterator[Batch]:
        yield from batches(2, 2)
        raise AssertionError("read too far")

    assert len(predict(Noted(), endless(), PIXELS, device=CPU, limit=2).index) == 4


@pytest.mark.parametrize("spooled", [False, True])
def test_saved_predictions_load_unchanged(tmp_path: Path, spooled: bool) -> None:
    (tmp_path / ".logits.partial").write_bytes(b"of an interrupted attempt")
    spool = tmp_path if spooled else None
    predictions = predict(Noted(), batches(3, 4), PIXELS, device=CPU, spool=spool)
    assert isinstance(predictions.logits, np.memmap) == spooled
    assert (tmp_path / ".logits.partial").exists() != spooled
    predictions.save(tmp_path)
    again = Predictions.load(tmp_path)
    for name in ("index", "target", "logits"):
        one, other = getattr(predictions, name), getattr(again, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_models_take_turns_in_the_throughput_measurement() -> None:
    """A slowdown of the machine affects both models, so the ratio stays valid."""
    diary: list[str] = []
    predictions = measure_throughput(
        {
            "teacher": (Noted("teacher", diary=diary).train(), PIXELS),
            "student": (Noted("student", diary=diary), PIXELS),
        },
        device=CPU,
        batch=2,
        seconds=1e-9,
    )
    assert diary == ["teacher", "student"] * (len(diary) // 2)
    assert len(diary) > 6
    assert set(predictions) == {"teacher", "student"}
    assert all(0 < figure < float("inf") for figure in predictions.values())


def test_throughput_is_images_over_seconds() -> None:
    sleeper = {
        name: (Noted(seconds=seconds), PIXELS)
        for name, seconds in (("slow", 0.02), ("fast", 0.001))
    }
    predictions = measure_throughput(sleeper, device=CPU, batch=4, seconds=0.1)
    assert 4 / 0.2 < predictions["slow"] <= 4 / 0.02
    assert predictions["slow"] < predictions["fast"] <= 4 / 0.001


def test_each_model_is_measured_on_its_own_pixels() -> None:
    gray = InputSpec(1, 6, 5, (0.5,), (0.5,))
    models = {"color": Noted(), "gray": Noted()}
    measure_throughput(
        {"color": (models["color"], PIXELS), "gray": (models["gray"], gray)},
        device=CPU,
        batch=3,
        seconds=1e-9,
    )
    assert {tuple(image.shape) for image in models["color"].inputs} == {(3, 3, 4, 4)}
    assert {tuple(image.shape) for image in models["gray"].inputs} == {(3, 1, 6, 5)}


class Headed(nn.Module):
    """A network with or without a linear classifier."""

    def __init__(self, width: int, *, linear: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, width, 3)
        self.head = nn.Linear(width, 3) if linear else nn.Identity()
        self.images = 0

    def forward(self, image: Tensor) -> Tensor:
        self.images += len(image)
        logits: Tensor = self.head(self.body(image).mean(dim=(2, 3)))
        return logits


def test_embeddings_come_from_the_pass_of_the_logits_and_reproduce_them() -> None:
    model = Headed(5)
    predictions = predict(model, batches(4, 4, 3), PIXELS, device=CPU, embeddings=True)
    assert model.images < 2 * 11  # plus a few single images to find the classifier
    assert predictions.embedding is not None
    assert predictions.kept is not None
    assert predictions.kept.tolist() == list(range(11))
    outputs = model.head(torch.from_numpy(predictions.embedding)).detach().numpy()
    np.testing.assert_allclose(outputs, predictions.logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        predict(model, batches(4, 4, 3), PIXELS, device=CPU).logits, predictions.logits
    )


def test_saved_embeddings_load_and_those_of_two_models_match_by_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {
        width: predict(Headed(width), batches(6, 6, 6, 2), PIXELS, device=CPU, embeddings=True)
        for width in (4, 9)
    }
    monkeypatch.setattr("kd_app.deployment.predictions._MAX_EMBEDDING_VALUES", 60)
    few = {
        width: predict(Headed(width), batches(6, 6, 6, 2), PIXELS, device=CPU, embeddings=True)
        for width in (4, 9)
    }
    kept = {
        width: predictions.kept.tolist()
        for width, predictions in few.items()
        if predictions.kept is not None
    }
    assert kept == {4: list(range(0, 20, 2)), 9: list(range(0, 20, 4))}
    few[4].save(tmp_path)
    pair = match_embeddings(Predictions.load(tmp_path), few[9])
    assert pair is not None
    for width, mine in zip((4, 9), pair, strict=True):
        everything = whole[width].embedding
        assert everything is not None
        np.testing.assert_array_equal(mine, everything[::4])


def test_a_model_without_a_linear_classifier_has_no_embedding() -> None:
    predictions = predict(
        Headed(3, linear=False), batches(4, 2), PIXELS, device=CPU, embeddings=True
    )
    assert predictions.logits.shape == (6, 3)
    assert predictions.embedding is None
    assert match_embeddings(predictions, predictions) is None
