"""Steps with a non-finite gradient."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kd_app.callbacks.non_finite_steps import SkipNonFiniteSteps
from tests.callbacks.fake_trainer import FakeTrainer


@pytest.mark.parametrize(("gradient", "skipped"), [(1.0, 0), (float("nan"), 1)])
def test_a_step_with_a_non_finite_gradient_is_skipped(gradient: float, skipped: int) -> None:
    student = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    module: Any = SimpleNamespace(student=student)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    callback, trainer = SkipNonFiniteSteps(), FakeTrainer()
    callback.on_train_batch_start(trainer, module, None, 0)  # type: ignore[arg-type]
    student[1].running_mean.fill_(gradient)  # type: ignore[operator]
    for parameter in student.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    callback.on_before_optimizer_step(trainer, module, optimizer)  # type: ignore[arg-type]
    assert callback.state_dict() == {"skipped": skipped}
    assert all((p.grad is None) == bool(skipped) for p in student.parameters())
    assert all(bool(buffer.isfinite().all()) for buffer in student.buffers())
