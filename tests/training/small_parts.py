"""A small net, loss terms and a data module for very short trainings."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kd_app.config import InputSpec
from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.cross_entropy import CrossEntropy
from kd_app.losses.distillation_loss import DistillationLoss
from kd_app.losses.soft_target import SoftTarget
from kd_app.models.outputs import Outputs
from kd_app.models.teacher import FrozenTeacher
from kd_app.optimizers.optimizer import Optimizer
from kd_app.schedules import Constant, Schedule
from kd_app.teacher_outputs.source import LiveTeacher
from kd_app.training.module import Distillation, StepOptions

CLASSES = 3
PIXELS = InputSpec(1, 6, 6, (0.0,), (1.0,))


class Net(nn.Module):
    """Dropout, BatchNorm and a head over 6x6 images."""

    def __init__(self, num_classes: int = CLASSES, width: int = 8, drop: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, stride=2)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(width, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        embedding = self.norm(self.conv(image)).relu().mean(dim=(2, 3))
        logits: Tensor = self.head(self.drop(embedding))
        return logits


def build_seeded(make: Callable[[], nn.Module], seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


class OwnData(pl.LightningDataModule):
    """An external data module with normalized float images: squares whose brightness is
    the class.
    """

    def __init__(self, batch_size: int = 8, images: int = 40, shuffle: bool = True) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.shuffle = shuffle
        draw = torch.Generator().manual_seed(0)
        target = torch.arange(images) % CLASSES
        image = target.view(-1, 1, 1, 1) - 1 + 0.3 * torch.randn(images, 1, 6, 6, generator=draw)
        self.sets = {
            name: TensorDataset(image + shift, target)
            for name, shift in (("train", 0.0), ("validation", 0.1), ("test", 0.2))
        }

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.sets["train"], self.batch_size, shuffle=self.shuffle, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.sets["validation"], self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.sets["test"], self.batch_size)


class FunctionTerm(LossTerm):
    """A term defined by a function of student, teacher and batch."""

    level: ClassVar[Level] = "output"

    def __init__(self, function: Callable[[Any, Any, Batch], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        loss: Tensor = self.function(student, teacher, batch)
        return loss


def terms(weight: float = 2.0, **more: LossTerm) -> DistillationLoss:
    """Cross-entropy, soft targets times `weight`, and `more`."""
    loss = {
        "cross_entropy": CrossEntropy(smoothing=0.0, class_weights=None),
        "soft_target": SoftTarget(temperature=4.0, standardize=False),
        **more,
    }
    return DistillationLoss(loss, {name: weight if name == "soft_target" else 1.0 for name in loss})


def optimizer(**changed: Any) -> Optimizer:
    plain = {
        "name": "momentum",
        "lr": 0.1,
        "scratch_lr": 0.1,
        "finetune_lr": 0.1,
        "weight_decay": 0.0,
        "momentum": 0.0,
        "kwargs": {},
    }
    return Optimizer(**{**plain, **changed})


def build_frozen(model: nn.Module, reads: frozenset[str] = frozenset({"logits"})) -> FrozenTeacher:
    return FrozenTeacher(model, reads=reads, pixels=PIXELS, sees=PIXELS)


def distillation(
    student: nn.Module | None = None, teacher: nn.Module | None = None, **changed: Any
) -> Distillation:
    """A module with a student and a teacher of class `Net`; `changed` overrides
    arguments and step options.
    """
    loss: DistillationLoss = changed.pop("terms", None) or terms()
    source = LiveTeacher(
        build_frozen(teacher or build_seeded(lambda: Net(width=12), 1), loss.teacher_reads)
    )
    names = [each.name for each in fields(StepOptions) if each.name in changed]
    options = {"log_every": 1, **{name: changed.pop(name) for name in names}}
    schedule: Schedule = changed.pop("schedule", None) or Constant(warmup=0.0)
    settings = {
        "teacher": source,
        "num_classes": CLASSES,
        "optimizer": optimizer(),
        "schedule": schedule,
        "options": StepOptions(**options),
        **changed,
    }
    return Distillation(student or build_seeded(Net), loss=loss, **settings)


class Rows(pl.loggers.Logger):
    """A logger that stores the rows."""

    name = "rows"
    version = "0"

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append({"step": float(step or 0), **metrics})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def plain_trainer(logger: Any = False, **more: Any) -> pl.Trainer:
    """A plain Lightning Trainer."""
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "accelerator": "cpu",
    }
    return pl.Trainer(
        **{**quiet, "max_epochs": 2, "logger": logger, "log_every_n_steps": 1, **more}
    )
