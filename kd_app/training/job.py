"""One training as a value: the model, the recipe, the teacher, and the identity that
the stage cache hashes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from lightning.pytorch.callbacks import Callback

from kd_app.callbacks.rules import build_callback, check_together
from kd_app.config import InputSpec, RequestError
from kd_app.config.make import make
from kd_app.data.base import RunData
from kd_app.data.partners import PartnerKind
from kd_app.data.pseudo_labels import hash_pseudo_labels
from kd_app.losses.base import LossTerm
from kd_app.losses.cross_entropy import AUTO, BALANCED
from kd_app.losses.distillation_loss import DistillationLoss
from kd_app.models.composite import EmaTeacher
from kd_app.models.create import create
from kd_app.models.spec import LoadedModel, ModelSpec
from kd_app.optimizers.optimizer import Optimizer
from kd_app.schedules import Schedule
from kd_app.tasks.base import Task
from kd_app.tasks.classification import CLASSIFICATION
from kd_app.training.trainer import TrainerSettings

Config = dict[str, Any]
_CLASS_WEIGHTS = "class_weights"
IMBALANCE: Final = 5
"""Images of the largest class for each of the smallest, from which on
``class_weights=auto`` weights the classes. Measured at 20, see docs/recipes.md.
"""
_KEYS_OF_THE_SUM = ("weight", "schedule", "teacher")
"""Keys in the config of a loss term that `DistillationLoss` reads, not the term."""


@dataclass(frozen=True)
class Recipe:
    """How to train one model, as plain configuration.

    freeze: the layers that are not trained, see `freeze_layers`.
    """

    loss: Config
    optimizer: Config
    scheduler: Config
    callbacks: Config
    max_epochs: int
    seed: int
    freeze: list[str] = field(default_factory=list)

    @property
    def how(self) -> str:
        """A summary for the plan: 'for 10 epochs on cross_entropy + soft_target'."""
        frozen = f", {', '.join(self.freeze)} frozen" if self.freeze else ""
        return f"for {format_epochs(self.max_epochs)} on {' + '.join(self.loss)}{frozen}"

    @cached_property
    def _loss(self) -> DistillationLoss:
        # for the properties of the loss; a training builds its own
        return self.build_loss()

    @property
    def needs_teacher(self) -> bool:
        """Whether any loss term reads a teacher."""
        return self._loss.needs_teacher

    @property
    def loss_reads(self) -> dict[str, frozenset[str]]:
        """The fields of `Outputs` that each loss term reads."""
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
        """Build the loss; `DistillationLoss.build` adds the adapters."""
        parts = {
            name: {k: v for k, v in node.items() if k not in _KEYS_OF_THE_SUM}
            for name, node in self.loss.items()
        }
        weights = {name: _read_weight(name, node) for name, node in self.loss.items()}
        schedules = {
            name: _make_schedule(name, node["schedule"])
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
        """Build the optimizer's settings."""
        optimizer: Optimizer = make(self.optimizer, Optimizer)
        return optimizer

    def make_schedule(self) -> Schedule:
        """Build the schedule of the learning rate."""
        schedule: Schedule = make(self.scheduler, Schedule)
        return schedule

    def make_callbacks(self, task: Task) -> dict[str, Callback]:
        """Build new callbacks for a training of `task`."""
        callbacks = {
            name: build_callback(name, node, task, has_teacher=self.needs_teacher)
            for name, node in self.callbacks.items()
        }
        check_together(callbacks)
        return callbacks

    @property
    def is_balanced(self) -> bool:
        """Whether a term weights the classes by their number of images."""
        return self._has_class_weights(BALANCED)

    @property
    def counts_classes(self) -> bool:
        """Whether weights of the classes depend on their number of images."""
        return self.is_balanced or self._has_class_weights(AUTO)

    def _has_class_weights(self, choice: str) -> bool:
        return any(node.get(_CLASS_WEIGHTS) == choice for node in self.loss.values())

    def balance_classes(self, counts: Sequence[int]) -> "Recipe":
        """The recipe with the class weights ``images / (classes * count)`` in place of
        'balanced', and of 'auto' if the classes are `is_imbalanced`; otherwise with
        equal weights for 'auto'. counts: labeled training images by class; none if they
        are not known.
        """
        weights = [sum(counts) / (len(counts) * max(count, 1)) for count in counts]
        choices = {BALANCED: weights, AUTO: weights if is_imbalanced(counts) else None}
        loss = {
            name: {**node, _CLASS_WEIGHTS: choices[node[_CLASS_WEIGHTS]]}
            if node.get(_CLASS_WEIGHTS) in (BALANCED, AUTO)
            else node
            for name, node in self.loss.items()
        }
        return replace(self, loss=loss)

    def to_json(self) -> dict[str, Any]:
        """The fields as plain data."""
        return {field.name: getattr(self, field.name) for field in fields(Recipe)}


def is_imbalanced(counts: Sequence[int]) -> bool:
    """Whether the largest class has `IMBALANCE` times the images of the smallest one
    that has any.
    """
    present = [count for count in counts if count]
    return bool(present) and max(present) >= IMBALANCE * min(present)


@dataclass(frozen=True)
class CachedOutputs:
    """The teacher's outputs for the views of a training: the folders of the shards, and
    the name of their format.
    """

    format: str
    shards: tuple[Path, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as plain data."""
        return {"format": self.format, "shards": [_to_text(shard) for shard in self.shards]}


@dataclass(frozen=True)
class JobTeacher:
    """The teacher of a training, with the folders of the teacher's outputs.

    folder: the stage that trained the teacher; None for a pretrained teacher.
    validation_logits: the teacher's predictions on validation, to measure agreement
    during the training. cached: the teacher's outputs for the views, read instead of
    running the teacher.
    """

    model: ModelSpec
    created: LoadedModel
    folder: Path | None = None
    validation_logits: Path | None = None
    cached: CachedOutputs | None = None

    @property
    def ema_decay(self) -> float | None:
        """The decay of the average if the teacher is an average of the student."""
        return self.model.decay if isinstance(self.model, EmaTeacher) else None

    def describe(self) -> dict[str, Any]:
        """See `describe_source`."""
        return describe_source(self.model, self.created, self.folder)

    def to_json(self) -> dict[str, Any]:
        """The teacher as plain data; another process loads the weights from disk."""
        return {
            "model": self.model.to_json(),
            "input": vars(self.created.pixels),
            "folder": _to_text(self.folder),
            "validation_logits": _to_text(self.validation_logits),
            "cached": self.cached.to_json() if self.cached else None,
        }


@dataclass(frozen=True)
class TrainingJob:
    """Everything that determines the weights of one training.

    name: names the stage, the console lines and the curves. partners: the teacher sees
    another image, or the student itself in another view of the image takes the place of
    the teacher, which then only chooses the epoch (controls). pseudo_labels: the folder
    with labels of images without one, see `read_pseudo_labels` (a control).
    fresh_views: every epoch draws a new view of each image, regardless of
    ``data.views`` (the teacher's own training). license: the license of the trained
    weights. refit_weights: train on the validation images, too, without validation, and
    export these weights of the last epoch; None: export the best weights on validation.
    task: what the model learns.
    """

    name: str
    model: ModelSpec
    input: InputSpec
    recipe: Recipe
    teacher: JobTeacher | None = None
    partners: PartnerKind | None = None
    pseudo_labels: Path | None = None
    fresh_views: bool = False
    license: str = "unknown"
    refit_weights: Literal["raw", "average"] | None = None
    task: Task = CLASSIFICATION

    def count_outputs(self, data: RunData) -> int:
        """The width of the model's output."""
        return self.task.count_outputs(data.classes, self.name)

    def describe_identity(self, data: RunData, trainer: TrainerSettings) -> dict[str, Any]:
        """The settings that determine the trained weights, for the stage's key."""
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
            **({"freeze": recipe.freeze} if recipe.freeze else {}),
            "trainer": {**trainer.describe_identity(), "max_epochs": recipe.max_epochs},
            "data": data.describe_identity(for_teacher=self.fresh_views),
            "teacher": (
                {"name": teacher.model.name, "pixels": vars(teacher.created.pixels)}
                if teacher
                else None
            ),
            **({"partners": self.partners} if self.partners else {}),
            **({"refit": self.refit_weights} if self.refit_weights else {}),
            **({"pseudo_labels": True} if self.pseudo_labels else {}),
            **({"teacher_outputs": teacher.cached.format} if teacher and teacher.cached else {}),
            **self.task.describe_identity(),
        }

    def hash_inputs(self, data: RunData) -> dict[str, str]:
        """The hashes of the data, the initial weights, the teacher's weights and the
        pseudo-labels.
        """
        pseudo_labels = self.pseudo_labels
        initial = create(self.model, self.input, self.count_outputs(data), seed=self.recipe.seed)
        return {
            "data": data.fingerprint,
            "start": initial.weights.sha256,
            **({"teacher": self.teacher.created.weights.sha256} if self.teacher else {}),
            **({"pseudo_labels": hash_pseudo_labels(pseudo_labels)} if pseudo_labels else {}),
        }

    def to_json(self) -> dict[str, Any]:
        """The job as plain data, from which `kd_app.run.worker.load_job` loads the job
        in each rank's process.
        """
        return {
            "name": self.name,
            "model": self.model.to_json(),
            "input": vars(self.input),
            "recipe": self.recipe.to_json(),
            "teacher": self.teacher.to_json() if self.teacher else None,
            "partners": self.partners,
            "pseudo_labels": _to_text(self.pseudo_labels),
            "fresh_views": self.fresh_views,
            "license": self.license,
            "refit_weights": self.refit_weights,
            "task": self.task.to_json(),
        }


def describe_source(model: ModelSpec, created: LoadedModel, folder: Path | None) -> dict[str, Any]:
    """The origin of a model: name, source, sha256, the stage that trained the model and
    the path that the weights were loaded from.
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
    return str(path.absolute()) if path else None


def _read_weight(name: str, node: Config) -> float:
    weight = node.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
        raise RequestError(
            f"loss.{name}.weight={weight!r} does not fit: expected a number, 0 or more."
        )
    return float(weight)


def _make_schedule(name: str, node: Any) -> Schedule:
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise RequestError(
            f"loss.{name}.schedule={node!r} does not fit: expected a choice of the group scheduler,"
            f" for example loss.{name}.schedule=warmup. Settings of the choice may follow, for"
            f" example loss.{name}.schedule.end=0.2."
        )
    schedule: Schedule = make(node, Schedule)
    return schedule
