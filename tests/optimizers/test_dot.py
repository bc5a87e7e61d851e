"""DOT: separate momenta for the gradients of labels and teacher."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.losses.distillation_loss import DistillationLoss
from kd_app.optimizers.dot import TwoMomenta
from kd_app.specs.spec import build_spec
from kd_app.training.module import Distillation
from kd_app.training.trainer import silence_lightning
from tests.builders import compare_resumed, teacher_folder
from tests.training.small_parts import OwnData, distillation, plain_trainer, terms


def losses(p: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """A label loss and a teacher loss, with gradients that depend on parameters and
    step.
    """
    return (p * (step + 1)).square().sum(), (p - torch.linspace(-1, 1, len(p))).abs().pow(1.5).sum()


def run_steps(
    optimizer: Any,
    p: nn.Parameter,
    *,
    steps: int = 5,
    apart: bool = True,
    clip: float | None = None,
) -> Tensor:
    for step in range(steps):
        optimizer.zero_grad()
        ours, theirs = losses(p, step)
        if apart:
            optimizer.split_gradients(ours)
        (ours + theirs).backward()
        if clip is not None:
            optimizer.clip_gradients(clip)
        optimizer.step()
    return p.detach()


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.linspace(0.5, 2, 4, dtype=torch.float64))


@pytest.mark.parametrize("clip", [None, 0.5])
def test_two_momenta_follow_the_formula_of_the_paper(clip: float | None) -> None:
    rate, momentum, delta, decay = 0.01, 0.9, 0.075, 0.1
    group = {"params": [parameter()], "weight_decay": decay}
    result = run_steps(
        TwoMomenta([group], lr=rate, momentum=momentum, delta=delta),
        group["params"][0],  # type: ignore[index]
        clip=clip,
    )
    p, labels, teacher = (
        parameter().detach(),
        torch.zeros(4, dtype=torch.float64),
        torch.zeros(4, dtype=torch.float64),
    )
    for step in range(5):
        own = p.clone().requires_grad_()
        ours, theirs = (torch.autograd.grad(loss, own)[0] for loss in losses(own, step))
        scale = 1.0 if clip is None else min(1.0, clip / float((ours + theirs).norm() + 1e-6))
        labels = (momentum - delta) * labels + scale * ours + decay * p
        teacher = (momentum + delta) * teacher + scale * theirs
        p = p - rate * (labels + teacher)
    torch.testing.assert_close(result, p)


@pytest.mark.parametrize(("delta", "apart"), [(0.0, True), (0.09, False)])
def test_equal_momenta_or_one_gradient_give_sgd(delta: float, apart: bool) -> None:
    one, other = parameter(), parameter()
    result = run_steps(
        TwoMomenta([{"params": [one], "weight_decay": 0.1}], lr=0.01, momentum=0.9, delta=delta),
        one,
        apart=apart,
    )
    plain = torch.optim.SGD([other], lr=0.01, momentum=0.9, weight_decay=0.1)
    torch.testing.assert_close(result, run_steps(plain, other, apart=False))


class FakeSettings:
    """Optimizer settings that build `TwoMomenta`."""

    def __init__(self, delta: float) -> None:
        self.delta = delta

    def make(self, model: nn.Module, **more: Any) -> torch.optim.Optimizer:
        optimizer = TwoMomenta(model.parameters(), lr=0.1, momentum=0.5, delta=self.delta)
        optimizer.param_groups[0]["initial_lr"] = 0.1
        return optimizer


def train_weights(
    delta: float, chosen: DistillationLoss | None = None, **more: Any
) -> dict[str, Tensor]:
    module: Distillation = distillation(terms=chosen, optimizer=FakeSettings(delta))
    with silence_lightning():
        plain_trainer(max_epochs=2, **more).fit(module, datamodule=OwnData(shuffle=False))
    return dict(module.student.state_dict())


def _return_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    return optimizer


def test_in_a_training_the_labels_momentum_is_the_smaller_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a weight of 0 for the teacher's term, only the label momentum acts; and the
    other way round.
    """
    labels, teacher = terms(weight=0.0), terms(weight=1.0)
    teacher.weights["cross_entropy"] = 0.0
    for chosen, momentum in ((labels, 0.3), (teacher, 0.7)):
        alone = DistillationLoss(chosen.chosen, chosen.weights)
        module = distillation(terms=alone, optimizer=FakeSettings(0.0))
        plain = torch.optim.SGD(module.student.parameters(), lr=0.1, momentum=momentum)
        plain.param_groups[0]["initial_lr"] = 0.1
        monkeypatch.setattr(module, "configure_optimizers", partial(_return_optimizer, plain))
        with silence_lightning():
            plain_trainer(max_epochs=2).fit(module, datamodule=OwnData(shuffle=False))
        same(train_weights(0.2, chosen), dict(module.student.state_dict()))


def test_clipping_accumulation_and_bfloat16_leave_equal_momenta_what_sgd_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for more in (
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.05},
        {"precision": "bf16-mixed"},
    ):
        module = distillation(optimizer=FakeSettings(0.0))
        plain = torch.optim.SGD(module.student.parameters(), lr=0.1, momentum=0.5)
        plain.param_groups[0]["initial_lr"] = 0.1
        monkeypatch.setattr(module, "configure_optimizers", partial(_return_optimizer, plain))
        with silence_lightning():
            plain_trainer(max_epochs=2, **more).fit(module, datamodule=OwnData(shuffle=False))
        same(
            train_weights(0.0, **more),
            dict(module.student.state_dict()),
            atol=1e-3 if "precision" in more else 1e-6,
        )
        other = train_weights(0.2, **more)
        assert not all(
            torch.equal(tensor, other[name]) for name, tensor in module.student.state_dict().items()
        )


def same(one: dict[str, Tensor], other: dict[str, Tensor], atol: float = 1e-6) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=atol)


def test_a_resumed_run_with_dot_is_bit_identical(tmp_path: Path) -> None:
    teacher = teacher_folder(tmp_path / "teacher", "resnet8_narrow")
    words = [
        "optimizer=dot",
        "loss.soft_target.schedule=ramp",
        "student.name=resnet8_narrow",
        "data.batch_size=64",
        "data.split.test=0.7",
        "trainer.max_epochs=2",
        "trainer.accumulate_grad_batches=2",
        "trainer.checkpoint_steps=1",
    ]
    compare_resumed(teacher, tmp_path, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.delta=0.2"], "optimizer.delta=0.2 gives the momenta 0.7 and 1.1"),
        (["optimizer.delta=1"], "delta=1 does not fit"),
    ],
)
def test_wrong_settings_of_dot_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build_spec(compose_config("distill", ["optimizer=dot", *words]))


def test_a_scaled_loss_and_several_processes_are_refused() -> None:
    settings = build_spec(compose_config("distill", ["optimizer=dot"])).recipe.make_optimizer()
    with pytest.raises(RequestError, match=r"in one process, but 2 processes are configured"):
        settings.check_place(2, "32-true")
    with pytest.raises(RequestError, match=r"loss scaling of trainer\.precision=16-mixed"):
        settings.check_place(1, "16-mixed")
