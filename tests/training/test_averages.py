"""A teacher that is the student's own average."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.config.compose import composed
from kd_app.training.fit import quiet
from kd_app.training.module import Distillation
from kd_app.training.parts import parts
from tests.training.made import gone_on
from tests.training.small_parts import Net, OwnData, distillation, plain_trainer, seeded


class Linear(nn.Sequential):
    """A net without BatchNorm: at first its average says the very same."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(36, 3))


@pytest.mark.parametrize("net", [Net, Linear])
def test_after_every_step_the_teacher_moves_toward_the_student(
    net: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = seeded(net)
    module = distillation(student=student, teacher=deepcopy(student), decay=0.6)
    steps: list[dict[str, Tensor]] = [deepcopy(dict(student.state_dict()))]
    plain = Distillation.optimizer_step

    def step(self: Distillation, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        steps.append(deepcopy(dict(self.student.state_dict())))

    monkeypatch.setattr(Distillation, "optimizer_step", step)
    with quiet():
        plain_trainer(max_epochs=2, accumulate_grad_batches=2).fit(module, datamodule=OwnData())
    assert len(steps) == 7
    expected = steps[0]
    for number, after in enumerate(steps[1:], start=1):
        decay = min(0.6, 1 - 1 / (number + 1))
        expected = {
            name: (
                decay * average + (1 - decay) * after[name]
                if average.is_floating_point()
                else after[name]
            )
            for name, average in expected.items()
        }
    assert module.teacher is not None
    for name, average in module.teacher.model.state_dict().items():
        torch.testing.assert_close(average, expected[name], msg=name)
    assert not any(parameter.requires_grad for parameter in module.teacher.model.parameters())


def test_a_run_with_it_goes_on_bit_by_bit(tmp_path: Path) -> None:
    words = [
        "teacher.decay=0.9",
        "student.name=resnet8",
        "data.batch_size=256",
        "trainer.max_epochs=2",
        "trainer.checkpoint_steps=1",
    ]
    whole = gone_on("ema", tmp_path, *words)
    assert all(row["train/soft_target"] > 0 for row in whole.curves if "train/soft_target" in row)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("teacher.decay=1", "teacher: decay=1 does not fit"),
        ("teacher.decay=0", "decay=0 does not fit"),
    ],
)
def test_a_decay_out_of_range_is_refused(words: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        parts(composed("distill", ["teacher=ema", words]))
