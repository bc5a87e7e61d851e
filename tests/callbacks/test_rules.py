"""Lightning's callbacks: those that work, and one paragraph for those that don't."""

from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor

from kd_app.callbacks.averaging import EMA
from kd_app.callbacks.rules import (
    build_callback,
    check_together,
    list_callback_needs,
    list_metrics,
)
from kd_app.config import RequestError
from kd_app.tasks.base import Task
from kd_app.tasks.classification import CLASSIFICATION
from kd_app.tasks.embedding import Embedding
from kd_app.training.trainer import silence_lightning
from tests.training.small_parts import OwnData, distillation, plain_trainer

STOPPING: dict[str, Any] = {"monitor": "auto", "patience": 2, "min_delta": 0.0}
LIGHTNING = "lightning.pytorch.callbacks"


def build(
    name: str, *, task: Task = CLASSIFICATION, has_teacher: bool = True, **settings: Any
) -> Callback:
    target = name if "." in name else f"{LIGHTNING}.{name}"
    return build_callback("stop", {"_target_": target, **settings}, task, has_teacher=has_teacher)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("LearningRateFinder", "hparams_search=optimizer"),
        ("BatchSizeFinder", "Set data.batch_size"),
        ("ModelPruning", "kd-compress"),
        ("StochasticWeightAveraging", r"Use 'callbacks=\[ema\]'"),
        ("BackboneFinetuning", "Set student.freeze=backbone"),
        ("RichProgressBar", "prints the progress itself"),
        ("RichModelSummary", "prints the models itself"),
        ("GradientAccumulationScheduler", "Set trainer.accumulate_grad_batches"),
        ("LambdaCallback", "its arguments are functions"),
    ],
)
def test_a_callback_that_cannot_work_is_refused_with_the_alternative(
    name: str, message: str
) -> None:
    with pytest.raises(
        RequestError,
        match=rf"callbacks.stop={LIGHTNING}.{name} does not work in kd_app: .*{message}",
    ):
        build(name)


@pytest.mark.parametrize(
    ("monitor", "hint"),
    [
        ("val_loss", "Did you mean 'validation/nll'"),
        ("val_acc", "Did you mean 'validation/top1'"),
        ("train/loss", "Did you mean 'validation/nll'"),
        ("zzz", "Known: validation/top1"),
    ],
)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("EarlyStopping", {}),
        ("kd_app.callbacks.early_stopping.EarlyStopping", {"patience": 2, "min_delta": 0.0}),
    ],
)
def test_an_unknown_metric_is_refused_with_the_known_ones(
    name: str, settings: dict[str, Any], monitor: str, hint: str
) -> None:
    with pytest.raises(RequestError, match=f"monitor='{monitor}' is not a metric.*{hint}"):
        build(name, monitor=monitor, **settings)


def test_the_teachers_metrics_need_a_teacher() -> None:
    settings: dict[str, Any] = {"monitor": "validation/agreement", "mode": "max"}
    assert isinstance(build("EarlyStopping", **settings), EarlyStopping)
    with pytest.raises(RequestError, match="'validation/agreement' is not a metric of this train"):
        build("EarlyStopping", has_teacher=False, **settings)


def test_stopping_at_better_values_is_refused() -> None:
    with pytest.raises(RequestError, match="mode=min, but validation/top1 is better when it is hi"):
        build("EarlyStopping", monitor="validation/top1")
    assert build("EarlyStopping", monitor="validation/nll") is not None


@pytest.mark.parametrize("task", [CLASSIFICATION, Embedding()])
def test_early_stopping_monitors_what_chooses_the_best_epoch(task: Task) -> None:
    callback = build("kd_app.callbacks.early_stopping.EarlyStopping", task=task, **STOPPING)
    assert isinstance(callback, EarlyStopping)
    assert callback.monitor == f"validation/{task.selection.metric}"
    assert callback.mode == "max"


def test_the_metrics_of_classes_are_refused_for_an_embedding() -> None:
    with pytest.raises(RequestError, match=r"'validation/nll' is not a metric.*validation/overlap"):
        build("EarlyStopping", task=Embedding(), monitor="validation/nll")
    assert build("EarlyStopping", task=Embedding(), monitor="validation/distance") is not None


def test_the_metrics_are_those_that_a_training_logs() -> None:
    trainer = plain_trainer()
    with silence_lightning():
        trainer.fit(distillation(), datamodule=OwnData())
    assert set(list_metrics(CLASSIFICATION, has_teacher=False)) == {
        name for name in trainer.callback_metrics if "validation/" in name
    }


def test_two_callbacks_with_the_same_state_are_refused() -> None:
    one, other = (build("EarlyStopping", monitor="validation/nll", patience=n) for n in (1, 2))
    top1 = build("EarlyStopping", monitor="validation/top1", mode="max")
    check_together({"one": one, "top1": top1, "a": build("Timer"), "b": LearningRateMonitor()})
    with pytest.raises(RequestError, match=r"callbacks.one .* and callbacks.other .* together"):
        check_together({"one": one, "top1": top1, "other": other})
    with pytest.raises(RequestError, match="can't be used together"):
        check_together({"ema": EMA(decay=0.9), "other": build("EMAWeightAveraging")})


@pytest.mark.parametrize(
    ("name", "settings", "least"),
    [
        ("EarlyStopping", {"monitor": "validation/nll", "patience": 5}, [7]),
        ("EMAWeightAveraging", {}, [2_995]),
        ("EMAWeightAveraging", {"decay": 0.9, "update_every_n_steps": 2}, [57]),
        ("Timer", {}, []),
    ],
)
def test_the_length_that_a_callback_needs(
    name: str, settings: dict[str, Any], least: list[float]
) -> None:
    needs = list_callback_needs(build(name, **settings), settings)
    assert [need.least for need in needs] == least
