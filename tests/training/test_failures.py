"""A training that fails by a callback, or by code of the user, says by which."""

import re
import sys
from collections.abc import Iterator
from traceback import walk_tb
from types import FrameType, SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import Timer
from torch import Tensor
from torch.utils.data import DataLoader

from kd_app.config import RequestError, RunError
from kd_app.data.batch import Batch
from kd_app.losses.cross_entropy import CrossEntropy
from kd_app.models.outputs import Outputs
from kd_app.training.failures import explain_failures
from kd_app.training.trainer import silence_lightning
from tests.training.small_parts import OwnData, distillation, plain_trainer, terms


class FailingTerm(CrossEntropy):
    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        raise ValueError("no such loss")


class FailingData(OwnData):
    def train_dataloader(self) -> Any:
        raise OSError("no such images")


class FailingTransform(OwnData):
    def train_dataloader(self) -> Any:
        images: Any = [0] * 4
        return DataLoader(images, collate_fn=turn, batch_size=2)


def turn(images: Any) -> Any:
    raise LookupError("no such angle")


class Failing(pl.Callback):
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.help()

    def help(self) -> None:
        raise KeyError("gone")


class Exiting(pl.Callback):
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        sys.exit(3)


def explain(error: BaseException, callbacks: Any = None, *, steps: int = 0) -> BaseException:
    """The error for users; the original one if there is none."""
    trainer = SimpleNamespace(global_step=steps)
    with (
        pytest.raises(BaseException) as caught,  # noqa: PT011
        explain_failures(trainer, callbacks or {}, "student", first_step=0),
    ):
        raise error
    return caught.value


def fail(**parts: Any) -> BaseException:
    """The error of a short training with these parts."""
    data, callback = parts.pop("data", OwnData()), parts.pop("callback", None)
    trainer = plain_trainer(callbacks=[callback] if callback else [])
    with silence_lightning(), pytest.raises(BaseException) as caught:  # noqa: PT011
        trainer.fit(distillation(**parts), datamodule=data)
    return caught.value


@pytest.fixture(autouse=True)
def _helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The helpers of this file are no code of a user."""
    helpers = {explain.__code__, fail.__code__}

    def walk(traceback: Any) -> Iterator[tuple[FrameType, int]]:
        yield from (each for each in walk_tb(traceback) if each[0].f_code not in helpers)

    monkeypatch.setattr("kd_app.config.own_code.walk_tb", walk)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"terms": terms(mine=FailingTerm(smoothing=0.0, class_weights=None))},
            r"FailingTerm.forward \(.*ValueError: no such loss. .* The training so far is saved.",
        ),
        ({"data": FailingData()}, r"FailingData.train_dataloader \(.*OSError: no such images"),
        ({"data": FailingTransform()}, r"turn \(.*test_failures.py, line \d+\) .*: LookupError"),
        ({"callback": Exiting()}, r"Exiting.on_train_start \(.*SystemExit: 3"),
    ],
    ids=["loss", "data", "transform", "exit"],
)
def test_a_failure_of_the_users_own_code_names_the_class_and_the_method(
    parts: dict[str, Any], message: str
) -> None:
    failure = explain(fail(**parts))
    assert type(failure) is RunError
    assert re.match(message, str(failure))


def test_a_failure_of_a_configured_callback_names_its_setting_and_the_hook() -> None:
    mine = Failing()
    error = fail(callback=mine)
    assert str(explain(error, {"other": Timer(), "mine": mine})).startswith(
        "The callback mine (Failing) failed in on_train_start: KeyError: 'gone'"
    )
    assert str(explain(error)).startswith("Failing.on_train_start (")


def test_a_signal_in_a_callback_is_not_its_failure() -> None:
    error = SystemExit(143)
    assert explain(error, {"mine": Failing()}) is error


@pytest.mark.parametrize(("steps", "kind"), [(0, RequestError), (1, RunError)])
def test_no_refusal_undoes_a_training_that_has_begun(steps: int, kind: type[Exception]) -> None:
    alone = ValueError("Expected more than 1 value per channel when training, got [1, 8]")
    for error in (RequestError("Set data.batch_size to 2 or more"), alone):
        failure = explain(error, steps=steps)
        assert type(failure) is kind
        assert "Set data.batch_size to 2 or more" in str(failure)
