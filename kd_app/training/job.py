"""One training as a value: the recipe, the model, the teacher, and the identity that
the stage cache hashes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from kd_app.config import InputSpec, RequestError
from kd_app.config.make import make
from kd_app.data.base import RunData
from kd_app.losses.base import LossTerm
from kd_app.models.composite import EmaTeacher
from kd_app.models.create import LoadedModel, create
from kd_app.models.spec import ModelSpec
from kd_app.schedules import Schedule
from kd_app.training.loss import DistillationLoss
from kd_app.training.optimizer import Optimizer
from kd_app.training.trainer import TrainerSettings

Config = dict[str, Any]
_OF_THE_SUM = ("weight", "schedule", "teacher")
"""Keys of a loss term that are not for the term."""


@dataclass(frozen=True)
class Recipe:
    """How one model is trained, as plain configuration: loss terms, optimizer,
    schedule, callbacks, epochs, seed.
    """

    loss: Config
    optimizer: Config
    scheduler: Config
    callbacks: Config
    max_epochs: int
    seed: int

    @property
    def how(self) -> str:
        """In words, for the plan."""
        return f"for {format_epochs(self.max_epochs)} on {' + '.join(self.loss)}"

    @cached_property
    def _loss(self) -> DistillationLoss:
        # Built once to answer questions about the loss. It is never trained.
        return self.build_loss()

    @property
    def needs_teacher(self) -> bool:
        """At least one loss term is distillation."""
        return self._loss.needs_teacher

    @property
    def loss_reads(self) -> dict[str, frozenset[str]]:
        """What each loss term reads of the models' outputs."""
        return {name: term.reads for name, term in self._loss.chosen.items()}

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each loss term."""
        return self._loss.weights

    @property
    def label_temperatures(self) -> list[float]:
        """The temperatures of the loss terms that soften class probabilities."""
        return self._loss.label_temperatures

    def build_loss(self) -> DistillationLoss:
        """Fresh terms, without adapters yet."""
        parts = {
            name: {k: v for k, v in node.items() if k not in _OF_THE_SUM}
            for name, node in self.loss.items()
        }
        weights = {name: _weight(name, node) for name, node in self.loss.items()}
        schedules = {
            name: _schedule(name, node["schedule"])
            for name, node in self.loss.items()
            if node.get("schedule") is not None
        }
        members = {
            name: str(node["teacher"])
            for name, node in self.loss.items()
            if node.get("teacher") is not None
        }
        return DistillationLoss(
            {name: make(part, LossTerm) for name, part in parts.items()},
            weights,
            schedules,
            members,
        )

    def make_optimizer(self) -> Optimizer:
        """The optimizer's settings."""
        made: Optimizer = make(self.optimizer, Optimizer)
        return made

    def make_schedule(self) -> Schedule:
        """The schedule of the learning rate."""
        made: Schedule = make(self.scheduler, Schedule)
        return made

    def make_callbacks(self) -> list[Callback]:
        """Fresh callbacks."""
        return [make(node, Callback) for node in self.callbacks.values()]

    def to_json(self) -> dict[str, Any]:
        """The fields as plain data."""
        return {each.name: getattr(self, each.name) for each in fields(Recipe)}


@dataclass(frozen=True)
class JobTeacher:
    """The model that a training learns from, and where its logits are on disk.

    folder: the stage that trained it; None for a teacher that is used as it is.
    validation_logits: a folder of its predictions on validation; None where the
    training computes them. cached_logits: a folder of its logits for every view, read
    instead of running it.
    """

    model: ModelSpec
    created: LoadedModel
    folder: Path | None = None
    validation_logits: Path | None = None
    cached_logits: Path | None = None

    @property
    def ema_decay(self) -> float | None:
        """How fast the student's own average moves, where that is the teacher."""
        return self.model.decay if isinstance(self.model, EmaTeacher) else None

    def describe(self) -> dict[str, Any]:
        """As `describe_source`."""
        return describe_source(self.model, self.created, self.folder)

    def to_json(self) -> dict[str, Any]:
        """Everything but the weights, which another process loads again."""
        return {
            "model": self.model.to_json(),
            "input": vars(self.created.pixels),
            "folder": _to_text(self.folder),
            "validation_logits": _to_text(self.validation_logits),
            "cached_logits": _to_text(self.cached_logits),
        }


@dataclass(frozen=True)
class TrainingJob:
    """Everything that decides the weights of one training, and nothing about who asks
    for it.

    name: of the stage, of the lines on the console, of the curves. partner_images: the
    teacher sees another image of the same class (a control). fresh_views: a new view of
    each image in every epoch, whatever ``data.views`` is (the teacher's own training).
    license: of the trained weights.
    """

    name: str
    model: ModelSpec
    input: InputSpec
    recipe: Recipe
    teacher: JobTeacher | None = None
    partner_images: bool = False
    fresh_views: bool = False
    license: str = "unknown"

    def identity(self, data: RunData, trainer: TrainerSettings) -> dict[str, Any]:
        """What decides the trained weights, beside the hashes in `inputs`."""
        recipe, teacher = self.recipe, self.teacher
        return {
            "model": {
                "name": self.model.name,
                "kwargs": self.model.kwargs,
                "pixels": vars(self.input),
                "classes": list(data.classes),
            },
            "loss": recipe.loss,
            "optimizer": recipe.optimizer,
            "scheduler": recipe.scheduler,
            "callbacks": recipe.callbacks,
            "seed": recipe.seed,
            "trainer": {**trainer.identity(), "max_epochs": recipe.max_epochs},
            "data": data.identity(for_teacher=self.fresh_views),
            "teacher": (
                {"name": teacher.model.name, "pixels": vars(teacher.created.pixels)}
                if teacher
                else None
            ),
            **({"partner_images": True} if self.partner_images else {}),
            **({"teacher_outputs": "cached"} if teacher and teacher.cached_logits else {}),
        }

    def inputs(self, data: RunData) -> dict[str, str]:
        """Hashes of the data, the starting weights and the teacher."""
        start = create(self.model, self.input, len(data.classes), seed=self.recipe.seed)
        return {
            "data": data.fingerprint,
            "start": start.weights.sha256,
            **({"teacher": self.teacher.created.weights.sha256} if self.teacher else {}),
        }

    def to_json(self) -> dict[str, Any]:
        """The job as plain data, for the processes that train it together;
        `kd_app.run.worker.load_job` reads it.
        """
        return {
            "name": self.name,
            "model": self.model.to_json(),
            "input": vars(self.input),
            "recipe": self.recipe.to_json(),
            "teacher": self.teacher.to_json() if self.teacher else None,
            "partner_images": self.partner_images,
            "fresh_views": self.fresh_views,
            "license": self.license,
        }


def describe_source(model: ModelSpec, created: LoadedModel, folder: Path | None) -> dict[str, Any]:
    """Where a model is: name, source, sha256, and the stage that trained it or the
    folder that it came from.
    """
    return {
        "name": model.name,
        "source": created.weights.source,
        "sha256": created.weights.sha256,
        "stage": _to_text(folder),
        "path": _to_text(model.origin.path),
    }


def format_epochs(number: int) -> str:
    """'1 epoch', '3 epochs'."""
    return f"{number} epoch{'' if number == 1 else 's'}"


def _to_text(path: Path | None) -> str | None:
    return str(path) if path else None


def _weight(name: str, node: Config) -> float:
    weight = node.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
        raise RequestError(
            f"loss.{name}.weight={weight!r} does not fit: expected a number, 0 or more."
        )
    return float(weight)


def _schedule(name: str, node: Any) -> Schedule:
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise RequestError(
            f"loss.{name}.schedule={node!r} does not fit: expected one of scheduler's choices, for"
            f" example loss.{name}.schedule=warmup, and then its settings, for example"
            f" loss.{name}.schedule.end=0.2."
        )
    made: Schedule = make(node, Schedule)
    return made
