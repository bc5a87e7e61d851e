"""Schedules of the weights of loss terms."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.losses.distillation_loss import DistillationLoss
from kd_app.schedules import Constant, Cosine, Linear, MultiStep, OneCycle, Ramp, Schedule
from kd_app.specs.spec import build_spec
from tests.builders import teacher_folder, train_student
from tests.training.small_parts import terms
from tests.training.small_terms import answers, batch, student

SHARE = st.floats(0, 1)


@given(SHARE, SHARE, SHARE, SHARE, SHARE)
def test_a_ramp_goes_from_its_first_factor_to_its_last(
    first: float, last: float, one: float, other: float, progress: float
) -> None:
    begin, end = sorted((one, other))
    shapes: dict[Literal["linear", "cosine"], Callable[[float], float]] = {
        "linear": lambda t: t,
        "cosine": lambda t: math.sin(math.pi * t / 2) ** 2,
    }
    for curve, rise in shapes.items():
        factor = Ramp(first=first, last=last, begin=begin, end=end, curve=curve).compute_factor
        assert factor(end + 1e-9) == pytest.approx(last, abs=1e-6)
        assert begin == 0 or factor(0.0) == first
        if end - begin > 1e-3:
            assert factor(begin + (end - begin) * progress) == pytest.approx(
                first + (last - first) * rise(progress), abs=1e-6
            )


def test_one_cycle_rises_to_1_and_falls_in_half_cosines() -> None:
    factor = OneCycle(rise=0.3, first=0.04, final=0.01).compute_factor
    values = [factor(progress) for progress in (0.0, 0.15, 0.3, 0.65, 1.0)]
    assert values == pytest.approx([0.04, 0.52, 1.0, 0.505, 0.01])
    assert OneCycle(rise=0.0, first=0.0, final=0.0).compute_factor(0.0) == 1.0
    assert OneCycle(rise=1.0, first=0.0, final=0.0).compute_factor(1.0) == pytest.approx(1.0)


def test_a_ramp_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(RequestError, match=r"begin=0.5 and end=0.2"):
        Ramp(first=0.0, last=1.0, begin=0.5, end=0.2, curve="linear")


def test_a_term_is_weighted_by_its_weight_times_its_schedule() -> None:
    loss = terms(weight=4.0)
    ramp = Ramp(first=0.5, last=0.0, begin=0.2, end=0.6, curve="linear")
    scheduled = DistillationLoss(loss.chosen, loss.weights, {"soft_target": ramp})
    images = batch()
    outputs, teacher = answers(student(), images)
    for progress, weight in ((0.0, 2.0), (0.4, 1.0), (0.7, 0.0)):
        images.progress = progress
        total, values = scheduled(outputs, teacher, images)
        torch.testing.assert_close(total, values["cross_entropy"] + weight * values["soft_target"])


def test_a_training_follows_the_schedule_and_logs_the_weight_of_each_step(
    tmp_path: Path,
) -> None:
    words = [
        "loss=[cross_entropy,soft_target]",
        "loss.soft_target.weight=3",
        "loss.soft_target.schedule=warmup",
        "loss.soft_target.schedule.end=0.5",
    ]
    steps = [
        "student.name=resnet8_narrow",
        "data.batch_size=300",
        "trainer.max_epochs=2",
        "trainer.accumulate_grad_batches=2",
        "trainer.log_every=1",
    ]
    run = train_student(teacher_folder(tmp_path / "teacher"), tmp_path, *words, *steps)
    rows = [row for row in run.curves if "train/loss" in row]
    total = rows[-1]["step"]
    assert len(rows) == 8
    assert total == 4
    for row in rows:
        weight = 3 * min((row["step"] - 0.5) / total / 0.5, 1.0)
        assert row["train/soft_target_weight"] == pytest.approx(weight)
        assert row["train/loss"] == pytest.approx(
            row["train/cross_entropy"] + weight * row["train/soft_target"], rel=1e-4
        )
        assert "train/cross_entropy_weight" not in row


def test_any_choice_of_scheduler_is_a_schedule_of_a_term() -> None:
    for name, at_half in (
        ("constant", 1.0),
        ("linear", 0.5),
        ("cosine", 0.5),
        ("one_cycle", (1 + math.cos(math.pi * 2 / 7)) / 2),
        ("ramp", 0.5),
        ("warmup", 1.0),
    ):
        settled = [
            f"loss.soft_target.schedule.{key}=0"
            for key in ("warmup",)
            if name in ("linear", "cosine")
        ]
        config = compose_config(
            "distill", [f"loss.soft_target.schedule={name}", *settled, "loss.soft_target.weight=2"]
        )
        loss = build_spec(config).recipe.build_loss()
        assert loss.compute_weight("soft_target", 0.5) == pytest.approx(2 * at_half)
        assert loss.compute_weight("cross_entropy", 0.5) == 1.0


@pytest.mark.parametrize(
    ("schedule", "least"),
    [
        (Cosine(warmup=0.05, final=0.0), [1]),
        (Linear(warmup=0.9, final=0.0), [5]),
        (Constant(warmup=1.0), [math.inf]),
        (MultiStep(warmup=0.5, milestones=[0.5, 1.0], gamma=0.1), [1, 2, math.inf]),
        (Ramp(first=0.0, last=1.0, begin=0.99, end=1.0, curve="linear"), [50]),
    ],
)
def test_every_phase_of_a_schedule_needs_a_step(schedule: Schedule, least: list[float]) -> None:
    needs = [need.least for need in schedule.list_length_needs()]
    assert needs == least
    for (_, start, _), steps in zip(schedule.list_phases(), needs, strict=True):
        if math.isfinite(steps):
            assert 1 - 0.5 / steps >= start - 1e-9
