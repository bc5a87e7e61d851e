"""Checkpoints that are due, votes of ranks, and the best weights."""

import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from kd_app.callbacks.resumable_checkpoint import (
    BEST,
    LAST,
    ResumableCheckpoint,
    TrainingInterrupted,
    is_best_intact,
)
from kd_app.digest import hash_file
from tests.callbacks.fake_trainer import FakeTrainer
from tests.training.small_parts import Net


def end_batch(callback: ResumableCheckpoint, trainer: Any, batch_idx: int = 0) -> None:
    callback.on_train_batch_end(trainer, None, None, None, batch_idx)  # type: ignore[arg-type]


def validate(callback: ResumableCheckpoint, top1: float, nll: float, epoch: int) -> None:
    metrics = {"validation/top1": top1, "validation/nll": nll}
    trainer: Any = FakeTrainer(callback_metrics=metrics, current_epoch=epoch)
    module: Any = SimpleNamespace(student=Net())
    callback.on_validation_epoch_start(trainer, module)
    callback.on_validation_end(trainer, module)


def test_the_best_epoch_has_the_highest_top1_and_of_equals_the_lowest_nll(tmp_path: Path) -> None:
    callback = ResumableCheckpoint(tmp_path, minutes=None)
    for epoch, (top1, nll) in enumerate([(0.5, 1.0), (0.75, 2.0), (0.75, 1.5), (0.75, 1.5)]):
        validate(callback, top1, nll, epoch)
    assert callback.best == {"top1": 0.75, "nll": 1.5, "epoch": 2.0}
    assert [path.name for path in tmp_path.iterdir()] == [BEST]
    restored = ResumableCheckpoint(tmp_path, minutes=None)
    restored.load_state_dict(callback.state_dict())
    assert restored.best == callback.best


@pytest.mark.parametrize("kind", ["raw", "average"])
def test_without_validation_the_weights_of_the_last_epoch_are_kept(
    tmp_path: Path, kind: Literal["raw", "average"]
) -> None:
    raw, average = Net(), Net()
    other: Any = SimpleNamespace(other_student=average)
    callback = ResumableCheckpoint(tmp_path, minutes=None, average=other, last=kind)
    for epoch in (8, 9):
        trainer: Any = FakeTrainer(current_epoch=epoch)
        callback.on_train_epoch_end(trainer, SimpleNamespace(student=raw))  # type: ignore[arg-type]
        assert (tmp_path / BEST).is_file() is (epoch == 9)
    assert callback.best == {"epoch": 9.0}
    weights, model = load_file(tmp_path / BEST), {"raw": raw, "average": average}[kind]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert is_best_intact(tmp_path, callback.sha256)


def test_the_best_weights_before_stay_until_a_checkpoint_refers_to_the_new_ones(
    tmp_path: Path,
) -> None:
    callback = ResumableCheckpoint(tmp_path, minutes=None)
    validate(callback, 0.5, 1.0, 0)
    first = callback.state_dict()["sha256"]
    assert first == hash_file(tmp_path / BEST)
    (tmp_path / LAST).touch()
    validate(callback, 0.6, 1.0, 1)
    validate(callback, 0.7, 1.0, 2)
    before = tmp_path / f".{BEST}.before"
    assert (hash_file(before), hash_file(tmp_path / BEST)) == (first, callback.sha256)
    trainer: Any = FakeTrainer()
    callback.on_train_epoch_end(trainer, Net())  # type: ignore[arg-type]
    assert not before.exists()


@pytest.mark.parametrize(
    ("minutes", "steps", "step", "is_saved"),
    [(60.0, None, 4, False), (1e-9, None, 4, True), (60.0, 2, 4, True), (None, 2, 4, False)],
)
def test_a_checkpoint_is_due_by_time_or_by_steps(
    minutes: float | None, steps: int | None, step: int, is_saved: bool, tmp_path: Path
) -> None:
    trainer = FakeTrainer(global_step=step)
    end_batch(ResumableCheckpoint(tmp_path, minutes=minutes, steps=steps), trainer)
    assert trainer.saved == ([LAST] if is_saved else [])


def test_no_checkpoint_is_saved_between_the_batches_of_one_step(tmp_path: Path) -> None:
    trainer = FakeTrainer(accumulate_grad_batches=2)
    callback = ResumableCheckpoint(tmp_path, minutes=1e-9)
    end_batch(callback, trainer, batch_idx=0)
    assert trainer.saved == []
    end_batch(callback, trainer, batch_idx=1)
    assert trainer.saved == [LAST]


def test_a_signal_stops_the_training_after_a_checkpoint_and_a_second_one_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback, trainer = ResumableCheckpoint(tmp_path, minutes=60.0), FakeTrainer()
    callback._request_stop(signal.SIGTERM, None)
    callback._request_stop(signal.SIGTERM, None)  # launchers send a signal twice
    with pytest.raises(TrainingInterrupted):
        end_batch(callback, trainer)
    assert (trainer.saved, callback.stop.number) == ([LAST], signal.SIGTERM)
    later = time.monotonic() + 1.1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(TrainingInterrupted):
        callback._request_stop(signal.SIGTERM, None)


class Ranks(SimpleNamespace):
    """The strategy of two ranks; `other` is the vote of the other one."""

    def __init__(self, other: list[float]) -> None:
        super().__init__(root_device=torch.device("cpu"), votes=0)
        self.other = torch.tensor(other)

    def reduce(self, vote: torch.Tensor, *, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "max"
        self.votes += 1
        return torch.maximum(vote, self.other)


def test_a_rank_stops_when_another_one_received_the_signal(tmp_path: Path) -> None:
    callback = ResumableCheckpoint(tmp_path, minutes=60.0)
    trainer = FakeTrainer(world_size=2, strategy=Ranks([0.0, 1.0, 0.001]))
    with pytest.raises(TrainingInterrupted):
        end_batch(callback, trainer)
    assert trainer.saved == [LAST]


@pytest.mark.parametrize(("seconds", "votes"), [(0.001, 2), (0.25, 5), (3.0, 17)])
def test_ranks_vote_about_once_a_second(seconds: float, votes: int, tmp_path: Path) -> None:
    callback = ResumableCheckpoint(tmp_path, minutes=60.0)
    trainer = FakeTrainer(world_size=2, strategy=Ranks([0.0, 0.0, seconds]))
    for step in range(1, 18):
        trainer.global_step = step
        end_batch(callback, trainer)
    assert trainer.strategy.votes == votes
    assert trainer.saved == []
