"""Number of steps and estimated seconds of an epoch."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.specs.spec import build_spec
from kd_app.training import timing
from kd_app.training.module import CHECKED_STEPS
from kd_app.training.timing import (
    EpochSteps,
    EpochTimer,
    count_images_per_batch,
    count_steps_per_epoch,
    estimate,
    match_wall_time,
    time_steps,
)
from kd_app.training.trainer import TrainerSettings, silence_lightning
from tests.training.small_parts import (
    PIXELS,
    Net,
    OwnData,
    build_seeded,
    distillation,
    plain_trainer,
)


def settings(*words: str) -> TrainerSettings:
    return build_spec(compose_config("distill", ["trainer=cpu", *words])).trainer


def batches(training: int, validation: int) -> Any:
    """Data with only a number of batches."""
    return SimpleNamespace(
        count_steps_per_epoch=lambda world_size: (training // world_size, validation // world_size)
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], EpochSteps(100, 20)),
        (["trainer.limit_train_batches=7"], EpochSteps(7, 20)),
        (["trainer.limit_train_batches=1000"], EpochSteps(100, 20)),
        (["trainer.limit_train_batches=0.1", "trainer.limit_val_batches=0.5"], EpochSteps(10, 10)),
        (["trainer.limit_val_batches=0.001"], EpochSteps(100, 1)),
        (["trainer.overfit_batches=3", "trainer.limit_train_batches=7"], EpochSteps(3, 3)),
    ],
)
def test_limits_shorten_an_epoch(words: list[str], expected: EpochSteps) -> None:
    assert count_steps_per_epoch(batches(100, 20), settings(*words)) == expected


def test_processes_share_the_batches_of_an_epoch() -> None:
    two = settings("trainer.devices=2")
    assert count_steps_per_epoch(batches(101, 20), two) == EpochSteps(50, 10)


def test_a_timer_excludes_the_checked_steps_and_their_epoch() -> None:
    timer = EpochTimer()
    with silence_lightning():
        trainer = plain_trainer(max_epochs=3, callbacks=[timer], num_sanity_val_steps=0)
        trainer.fit(distillation(), datamodule=OwnData())
    assert len(timer.training) == 3 * 5 - CHECKED_STEPS
    assert (len(timer.validation), len(timer.epochs)) == (3, 2)
    assert min(*timer.training, *timer.validation) > 0
    assert min(timer.epochs) > 5 * min(timer.training)


def timer(training: float, validation: float, epoch: float = 0.0) -> EpochTimer:
    result = EpochTimer()
    result.training, result.validation, result.epochs = [training], [validation], [epoch]
    return result


def test_the_seconds_of_an_epoch_are_those_of_its_batches_and_an_overhead() -> None:
    timed = timer(2.0, 0.5, epoch=30.0)
    assert timed.sum_seconds(EpochSteps(100, 10)) == 205.0
    assert timed.estimate_overhead(EpochSteps(10, 4)) == 30.0 - 22.0
    assert timed.estimate_overhead(EpochSteps(100, 10)) == 0.0


def test_jobs_are_timed_in_turn_on_a_few_steps_and_leave_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[tuple[float, dict[str, Any], int]] = []

    def fit(training: Any, data: Any, brief: Any, folder: Path, **more: Any) -> None:
        fits.append((training.seconds, brief.limits, training.recipe.max_epochs))
        (folder / "last.ckpt").touch()
        more["callbacks"][0].training.append(training.seconds)
        more["callbacks"][0].validation.append(1.0)

    def change(training: Any, **values: Any) -> Any:
        return SimpleNamespace(**{**vars(training), **values})

    monkeypatch.setattr(timing, "fit", fit)
    monkeypatch.setattr(timing, "replace", change)
    recipe = SimpleNamespace(max_epochs=100)
    trainings: Any = {
        "student": SimpleNamespace(seconds=3.0, recipe=recipe),
        "control": SimpleNamespace(seconds=1.0, recipe=recipe),
    }
    seconds = time_steps(trainings, batches(5, 2), settings(), tmp_path)
    assert seconds == {"student": 5 * 3.0 + 2, "control": 5 * 1.0 + 2}
    assert [seconds_of_job for seconds_of_job, _, _ in fits] == [3.0, 1.0] * 3
    limits = {"limit_train_batches": 5, "limit_val_batches": 2, "overfit_batches": None}
    assert all((job_limits, epochs) == (limits, 2) for _, job_limits, epochs in fits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("student", "epochs"), [(3.0, 6), (0.5, 2)])
def test_matched_epochs_are_never_fewer(
    student: float, epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"student": student, "control": 1.0}
    monkeypatch.setattr(timing, "time_steps", lambda *_: seconds)
    match_wall_time(2, {}, batches(5, 2), settings(), tmp_path)
    record = json.loads((tmp_path / "epochs.json").read_text(encoding="utf-8"))
    assert record == {"max_epochs": epochs, "seconds_an_epoch": seconds}


def test_an_estimate_times_training_only_if_requested() -> None:
    learns = estimate(build_seeded(Net), PIXELS, 8, settings(), train=True)
    assert learns.training > 0 < learns.inference
    assert estimate(build_seeded(Net), PIXELS, 8, settings(), train=False).training == 0


def test_a_network_is_timed_once_for_all_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_ESTIMATES", {})
    first = estimate(build_seeded(Net), PIXELS, 9, settings(), train=True)
    monkeypatch.setattr("kd_app.training.timing._time_call", lambda _: 1.0)
    assert estimate(build_seeded(Net), PIXELS, 9, settings("seed=1"), train=True) == first
    assert estimate(build_seeded(Net), PIXELS, 10, settings(), train=True).training == 1.0
    other = settings("trainer.precision=64-true")
    assert estimate(build_seeded(Net), PIXELS, 9, other, train=True).training == 1.0


@pytest.mark.parametrize("channels_last", [True, False])
def test_an_estimate_has_the_memory_format_of_the_training(channels_last: bool) -> None:
    formats = set()

    class Recorder(nn.Conv2d):
        def forward(self, image: Tensor) -> Tensor:
            formats.add(image.is_contiguous(memory_format=torch.channels_last))
            return super().forward(image)

    words = f"trainer.channels_last={str(channels_last).lower()}"
    estimate(Recorder(3, 4, 1), replace(PIXELS, channels=3), 8, settings(words), train=True)
    assert formats == {channels_last}


def test_a_batch_has_at_most_the_images_of_its_split() -> None:
    data: Any = SimpleNamespace(batch_size=100_000, sizes={"train": 70, "validation": 0})
    assert count_images_per_batch(data, "train") == 70
    assert count_images_per_batch(data, "validation") == 1


def test_a_step_that_does_not_fit_into_memory_is_a_wrong_request() -> None:
    class Huge(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            raise MemoryError

    message = "Memory ran out in a step of a batch of 64 images.*data.batch_size=32"
    with pytest.raises(RequestError, match=message):
        estimate(Huge(), PIXELS, 64, settings(), train=True)
