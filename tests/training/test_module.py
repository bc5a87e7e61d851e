"""The LightningModule in a plain Trainer with an external data module."""

import itertools
import json
import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from kd_app.callbacks.non_finite_steps import SkipNonFiniteSteps
from kd_app.config import RunError
from kd_app.losses.distillation_loss import DistillationLoss
from kd_app.schedules import Cosine, Linear
from kd_app.training.trainer import silence_lightning
from tests.training.small_parts import (
    CLASSES,
    FunctionTerm,
    Net,
    OwnData,
    Rows,
    build_seeded,
    distillation,
    optimizer,
    plain_trainer,
    terms,
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Suppress Lightning's hints about worker processes."""
    with silence_lightning():
        yield


def fit_rows(
    module: pl.LightningModule, data: OwnData | None = None, **more: Any
) -> list[dict[str, float]]:
    rows = Rows()
    plain_trainer(rows, **more).fit(module, datamodule=data or OwnData())
    return rows.rows


def curve(rows: list[dict[str, float]], name: str) -> list[float]:
    return [row[name] for row in rows if name in row]


def test_a_plain_trainer_distills_on_image_target_pairs() -> None:
    module = distillation()
    rows = fit_rows(module, max_epochs=6)
    losses = curve(rows, "train/loss")
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    validated = [row for row in rows if "validation/top1" in row]
    assert [row["step"] for row in validated] == [5, 10, 15, 20, 25, 30]
    assert set(validated[0]) == {
        "step",
        "epoch",
        *(f"validation/{name}" for name in ("top1", "top5", "balanced_accuracy", "nll", "ece")),
    }
    assert validated[-1]["validation/top1"] > 0.5


def test_the_loss_is_the_weighted_sum_of_the_terms_that_are_logged_by_name() -> None:
    for weight in (0.0, 2.0):
        rows = fit_rows(distillation(terms=terms(weight)))
        for row in rows:
            if "train/loss" in row:
                assert row["train/loss"] == pytest.approx(
                    row["train/cross_entropy"] + weight * row["train/soft_target"], rel=1e-5
                )
                assert row["train/soft_target"] > 0


def test_without_a_teacher_the_training_is_supervised() -> None:
    labels = terms().chosen["cross_entropy"]
    alone = DistillationLoss({"cross_entropy": labels}, {"cross_entropy": 1.0})
    module = distillation(terms=alone)
    module.teacher = None
    losses = curve(fit_rows(module, max_epochs=6), "train/loss")
    assert losses[-1] < losses[0]


class Modes(pl.Callback):
    """Record the mode of the student's modules in training and validation."""

    def __init__(self) -> None:
        self.training: list[bool] = []
        self.validating: list[bool] = []

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self.training += [module.training for module in pl_module.student.modules()]

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.validating += [module.training for module in pl_module.student.modules()]


def test_the_student_trains_in_train_mode_after_a_validation_too() -> None:
    """Fault 4 of other toolkits: the student is left in eval mode after the first
    validation.
    """
    modes = Modes()
    fit_rows(distillation(), max_epochs=3, callbacks=[modes])
    assert all(modes.training)
    assert not any(modes.validating)
    assert (len(modes.training), len(modes.validating)) == (
        3 * 5 * 5,
        3 * 5 * 5 + 2 * 5,
    )  # epochs, batches, modules; and a look before the start


def test_the_teacher_is_neither_trained_nor_changed() -> None:
    teacher = build_seeded(lambda: Net(width=12), 1)
    before = deepcopy(teacher.state_dict())
    module = distillation(student=build_seeded(lambda: Net(drop=0.5)), teacher=teacher)
    fit_rows(module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"student"}


def test_a_checkpoint_holds_no_tensor_of_the_teacher(tmp_path: Path) -> None:
    """Fault 10 of other toolkits: teacher weights in every checkpoint."""
    module = distillation(teacher=build_seeded(lambda: Net(width=500), 1))
    trainer = plain_trainer()
    trainer.fit(module, datamodule=OwnData())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").stat().st_size < 20_000
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in content["state_dict"]} == {"student"}
    shapes = [tuple(tensor.shape) for tensor in _tensors(content)]
    assert shapes
    assert not any(500 in shape for shape in shapes)


def _tensors(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    for inner in (
        node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    ):
        yield from _tensors(inner)


# -- faulty terms


def test_a_student_equal_to_its_teacher_gives_an_error_with_the_zero_term() -> None:
    with pytest.raises(
        RunError,
        match=(
            "The loss term soft_target is exactly zero in the first steps: student and teacher"
            " already agree"
        ),
    ):
        fit_rows(distillation(student=build_seeded(linear), teacher=build_seeded(linear)))


def test_a_student_in_eval_mode_is_set_to_train_mode() -> None:
    modes = Modes()
    fit_rows(distillation(student=build_seeded(Net).eval()), callbacks=[modes])
    assert all(modes.training)


def test_a_term_without_a_gradient_for_the_student_stops_the_run_by_name() -> None:
    for deaf in (
        lambda s, t, b: t.logits.square().mean(),
        lambda s, t, b: s.logits.detach().square().mean() + 0 * s.logits.sum(),
    ):
        with pytest.raises(
            RunError, match="The loss term deaf has no gradient for the student in the first steps"
        ):
            fit_rows(distillation(terms=terms(deaf=FunctionTerm(deaf))))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_term_that_is_not_finite_stops_the_run_by_name(value: float) -> None:
    with pytest.raises(RunError, match=f"The loss term wild is {value} in the first steps"):
        fit_rows(
            distillation(
                terms=terms(wild=FunctionTerm(lambda s, t, b: s.logits.mean().abs() * value))
            )
        )


class Diverging(Net):
    """The logits are NaN in eval mode, as after a last step that overflowed."""

    def forward(self, image: Tensor) -> Tensor:
        logits = super().forward(image)
        return logits if self.training else logits * float("nan")


def test_a_model_without_finite_logits_in_validation_stops_the_run() -> None:
    with pytest.raises(RunError, match="NaN or infinite logits for validation images after step"):
        fit_rows(distillation(student=build_seeded(Diverging)))


def wild_from(progress: float) -> FunctionTerm:
    return FunctionTerm(
        lambda s, t, b: s.logits.square().mean() * (float("nan") if b.progress > progress else 1.0)
    )


@pytest.mark.parametrize("log_every", [1, 4, 1000])
def test_a_term_that_becomes_nan_later_stops_the_run_with_its_name_and_the_images(
    log_every: int, tmp_path: Path
) -> None:
    with pytest.raises(
        RunError,
        match=(
            r"The loss term wild is not finite at step 8. The last finite state .*"
            r" trainer.on_nan=skip"
        ),
    ):
        fit_rows(
            distillation(terms=terms(wild=wild_from(0.65)), log_every=log_every),
            default_root_dir=tmp_path,
        )
    record = json.loads((tmp_path / "not_finite.json").read_text(encoding="utf-8"))
    assert record == {
        "term": "wild",
        "step": 8,
        "epoch": 1,
        "images": [],
    }  # plain batches number no images


def nan_at(*steps: int) -> FunctionTerm:
    calls = iter(range(1, 1000))
    return FunctionTerm(
        lambda s, t, b: s.logits.square().mean() * (float("nan") if next(calls) in steps else 1.0)
    )


@pytest.mark.parametrize("log_every", [1, 1000])
def test_non_finite_steps_are_skipped_and_counted_if_configured(
    log_every: int,
) -> None:
    class Weights(pl.Callback):
        def __init__(self) -> None:
            self.after: list[Tensor] = []

        def on_train_batch_end(
            self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            self.after.append(
                torch.cat([p.detach().flatten() for p in pl_module.student.parameters()])
            )

    skip, weights = SkipNonFiniteSteps(), Weights()
    module = distillation(terms=terms(wild=nan_at(5, 8)), log_every=log_every, skip_nonfinite=True)
    rows = fit_rows(module, callbacks=[skip, weights])
    assert skip.skipped == 2
    assert all(bool(each.isfinite().all()) for each in weights.after)
    still = [
        number
        for number, (one, other) in enumerate(itertools.pairwise(weights.after), start=2)
        if torch.equal(one, other)
    ]
    assert still == [5, 8]
    assert curve(rows, "train/skipped") == [1.0, 2.0]
    assert all(math.isfinite(value) for value in curve(rows, "train/loss"))


def test_a_skipped_step_leaves_the_running_statistics_alone() -> None:
    student = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, CLASSES))
    data = OwnData(shuffle=False)
    data.sets["train"].tensors[0][33] = float("nan")  # in an epoch's fifth batch
    skip = SkipNonFiniteSteps()
    fit_rows(
        distillation(student, terms=terms(), skip_nonfinite=True),
        data,
        callbacks=[skip],
        max_epochs=1,
    )
    assert skip.skipped == 1
    assert all(bool(tensor.isfinite().all()) for tensor in student.state_dict().values())


def test_an_epoch_with_mostly_skipped_steps_ends_the_run() -> None:
    with pytest.raises(RunError, match="3 of 5 steps in epoch 2 had a non-finite gradient"):
        fit_rows(
            distillation(terms=terms(wild=nan_at(6, 7, 8)), skip_nonfinite=True),
            callbacks=[SkipNonFiniteSteps()],
        )


def test_a_broken_state_is_never_saved(tmp_path: Path) -> None:
    class Saves(pl.Callback):
        def on_train_batch_end(
            self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    with pytest.raises(RunError, match="wild is not finite"):
        fit_rows(
            distillation(terms=terms(wild=wild_from(0.55)), log_every=1000),
            callbacks=[Saves()],
            default_root_dir=tmp_path,
        )
    for path in tmp_path.glob("*.ckpt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(bool(tensor.isfinite().all()) for tensor in state.values()), path
    assert len(list(tmp_path.glob("*.ckpt"))) == 6


def test_a_term_of_weight_zero_is_only_logged() -> None:
    watched = terms(zero=FunctionTerm(lambda s, t, b: 0 * s.logits.sum()))
    watched.weights["zero"] = 0.0
    assert set(curve(fit_rows(distillation(terms=watched)), "train/zero")) == {0.0}


# -- steps


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_learning_rate_follows_the_schedule_step_by_step(accumulate: int) -> None:
    schedule, epochs = Cosine(warmup=0.25, final=0.1), 4
    rows = fit_rows(
        distillation(schedule=schedule), max_epochs=epochs, accumulate_grad_batches=accumulate
    )
    steps = epochs * -(-5 // accumulate)  # 5 batches an epoch; an epoch's last step may have fewer
    rates = {row["step"]: row["train/lr"] for row in rows if "train/lr" in row}
    assert rates == {
        step: pytest.approx(0.1 * schedule.compute_factor((step - 0.5) / steps))
        for step in range(1, steps + 1)
    }


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES))


def test_two_accumulated_batches_equal_one_large_batch() -> None:
    modules = [distillation(student=build_seeded(linear)) for _ in range(2)]
    fit_rows(modules[0], OwnData(8, images=32, shuffle=False), accumulate_grad_batches=2)
    fit_rows(modules[1], OwnData(16, images=32, shuffle=False))
    for one, other in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["adamw", "momentum", "lamb"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_with_every_optimizer_in_every_precision(
    name: str, precision: Any
) -> None:
    class Norms(pl.Callback):
        largest = 0.0

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            norms = torch.stack(
                [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
            )
            self.largest = max(self.largest, float(norms.norm()))

    norms = Norms()
    module = distillation(optimizer=optimizer(name=name), terms=terms(100.0))
    fit_rows(module, gradient_clip_val=0.05, precision=precision, callbacks=[norms])
    assert norms.largest > 0.05  # what comes before the clipping
    before = build_seeded(Net).state_dict()
    if name == "momentum":
        moved = sum(
            (tensor - before[key]).square().sum()
            for key, tensor in module.student.state_dict().items()
            if "norm." not in key
        )
        assert 0 < float(moved) ** 0.5 <= 10 * 0.1 * 0.05 + 1e-6


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_the_losses_are_computed_in_float32_at_least(precision: Any) -> None:
    dtypes = set()

    def notes(student: Any, teacher: Any, batch: Any) -> Any:
        dtypes.add((student.logits.dtype, teacher.logits.dtype))
        return student.logits.square().mean()

    rows = fit_rows(distillation(terms=terms(noted=FunctionTerm(notes))), precision=precision)
    assert dtypes == {(torch.float64,) * 2 if precision == "64-true" else (torch.float32,) * 2}
    assert all(0 <= value <= 1 for value in curve(rows, "validation/top1"))


def test_dropout_depends_on_seed_and_position_only() -> None:
    class Draws(pl.Callback):
        def __init__(self) -> None:
            self.draws: list[float] = []

        def on_train_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
        ) -> None:
            torch.rand(int(torch.randint(1, 9, ())))  # whoever else draws does not matter

    def weights(seed: int, callbacks: list[Any]) -> list[Tensor]:
        module = distillation(student=build_seeded(lambda: Net(drop=0.5)), seed=seed)
        fit_rows(module, OwnData(shuffle=False), callbacks=callbacks)
        return [p.detach() for p in module.student.parameters()]

    first, same, other = weights(1, []), weights(1, [Draws()]), weights(2, [])
    assert all(torch.equal(one, two) for one, two in zip(first, same, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_a_training_without_an_end_is_refused() -> None:
    with pytest.raises(RunError, match="The schedule needs the number of epochs"):
        fit_rows(distillation(schedule=Linear(warmup=0.0, final=0.0)), max_epochs=-1, max_steps=3)
