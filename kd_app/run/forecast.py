"""The estimated duration of a run, from a few steps of each model on noise and one
batch of each loader.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from kd_app.config import InputSpec, RequestError
from kd_app.config.errors import take_first_line
from kd_app.data.unlabeled import UNLABELED
from kd_app.models.create import resolve_input
from kd_app.models.spec import ModelSpec
from kd_app.run.initial_models import load_untrained
from kd_app.run.pseudo_labels import LABELER
from kd_app.run.refit import count_images
from kd_app.run.teacher_views import list_images_by_view
from kd_app.run.workspace import Workspace
from kd_app.specs.schema import RefitSetting
from kd_app.training.timing import (
    StepEstimate,
    count_images_per_batch,
    count_steps_per_epoch,
    estimate,
)

_SPEED_SECONDS = 1.0
"""Seconds in which the speed of one model is measured."""
_STEP_OVERHEAD = 0.003
"""Seconds of a step besides model and images: optimizer, loss terms, logging."""
_EPOCH_OVERHEAD = 0.05
"""Seconds of an epoch besides its steps: metrics and checkpoints."""
_TRAINING_OVERHEAD = 0.3
"""Seconds of a training besides its epochs."""


@dataclass(frozen=True)
class Forecast:
    """Seconds of the parts of a run.

    training: all trainings with their validation. outputs: the teacher's outputs on
    validation, and those that are computed before the trainings. caching: of these, the
    cached outputs for training views, of `cache_bytes` bytes. measuring: the
    predictions on validation and test. speed: the measurement of the models' speed.
    steps: of a batch of each model, by role.
    """

    training: float
    outputs: float
    measuring: float
    speed: float
    caching: float = 0.0
    cache_bytes: int = 0
    steps: Mapping[str, StepEstimate] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Seconds of the whole run."""
        return self.training + self.outputs + self.measuring + self.speed


def forecast_run(workspace: Workspace, *, ready: bool) -> Forecast | None:
    """Estimate the duration of a run without cached stages; None if the estimate fails,
    which must not end the run.

    ready: the teacher is used without training. Raises `RequestError` if a step runs
    out of memory.
    """
    try:
        return _Estimator(workspace, ready=ready).estimate()
    except RequestError:
        raise
    except Exception as error:
        reason = take_first_line(error)
        workspace.console.print(f"Note: the duration could not be estimated: {reason}")
        return None


class _Estimator:
    """Adds up the seconds of all trainings and measurements."""

    def __init__(self, workspace: Workspace, *, ready: bool) -> None:
        self.workspace, self.ready = workspace, ready
        self.caching, self.cache_bytes = 0.0, 0
        self.steps = count_steps_per_epoch(workspace.data, workspace.spec.trainer)
        self.student = self._time(workspace.spec.student)
        teacher = workspace.spec.teacher
        self.teacher = None if teacher is None else self._time(teacher, train=not ready)
        self.loading = self._time_loading()

    def estimate(self) -> Forecast:
        spec, data = self.workspace.spec, self.workspace.data
        measured = {"student": self.student}
        training = outputs = 0.0
        if self.teacher:
            measured["teacher"] = self.teacher
            if spec.teacher_recipe and not self.ready:
                training += self._sum_training(spec.teacher_recipe.max_epochs, self.teacher)
        # The student and the controls learn from the last assistant.
        source = self.teacher
        for assistant in spec.assistants:
            cost = self._time(assistant.spec)
            training += self._sum_training(spec.recipe.max_epochs, cost, source)
            self._add_cache(source, assistant.spec)
            outputs += self._predict(cost, data.sizes["validation"])
            source = cost
        student = self._sum_training(spec.recipe.max_epochs, self.student, source)
        training += student
        again = student
        self._add_cache(source, spec.student)
        for name, control in spec.controls.items():
            model = self.workspace.resolve_spec(name)
            cost = self.student if model is spec.student else self._time(model)
            seconds = (
                student
                if control.match_wall_time
                else self._sum_training(
                    # the student runs twice a step on two views
                    control.max_epochs * (2 if control.partners == "view" else 1),
                    cost,
                    source if control.needs_teacher else None,
                )
            )
            training, again = training + seconds, again + seconds
            measured[name] = cost
            if control.labels_images:
                images = data.sizes["train"] + data.sizes.get(UNLABELED, 0)
                outputs += self._predict(cost, images)
                if LABELER not in spec.controls:
                    training += self._sum_training(control.max_epochs, cost)
            if control.label_entropy_temperature is not None and source:
                outputs += self._predict(source, data.sizes["train"])
        splits = ("validation", "test") if spec.config["test"] != "never" else ("validation",)
        measuring = sum(
            self._predict(model, data.sizes[split])
            for model in measured.values()
            for split in splits
        )
        return Forecast(
            training=training + self._sum_refit(again),
            outputs=outputs + self.caching,
            caching=self.caching,
            cache_bytes=self.cache_bytes,
            measuring=measuring,
            speed=_SPEED_SECONDS * len({id(model) for model in measured.values()}),
            steps=measured,
        )

    def _add_cache(self, source: StepEstimate | None, student: ModelSpec) -> None:
        """Add the seconds and bytes of the teacher's outputs that are computed before a
        training.
        """
        workspace, plan = self.workspace, self.workspace.cache_plan
        views = workspace.data.replay(self._resolve(student))
        if source is None or plan is None or views is None:
            return
        recipe, size = workspace.spec.recipe, workspace.data.batch_size
        by_view = list_images_by_view(workspace, views, recipe, sees_partners=False)
        images = sum(len(each) for each in by_view.values())
        start = time.perf_counter()
        count = sum(len(batch) for batch in views.batches(0, views.rows[:size]))
        loading = (time.perf_counter() - start) * size / max(count, 1)
        self.caching += images / size * (source.prediction + loading)
        self.cache_bytes += images * plan.format.bytes_per_view

    def _sum_refit(self, seconds: float) -> float:
        """Seconds of the second trainings of student and controls, at most: the best
        epoch may be an early one. seconds: of their first trainings.
        """
        data = self.workspace.data
        if not RefitSetting.read(self.workspace.spec.config["data"]):
            return 0.0
        return seconds * count_images(data) / data.sizes["train"]

    def _sum_training(
        self, epochs: int, model: StepEstimate, source: StepEstimate | None = None
    ) -> float:
        """Seconds of a training; source: the teacher of the model."""
        is_live = not self.workspace.spec.teacher_outputs.is_cached
        teacher_step = source.inference if source and is_live else 0.0
        step = model.training + teacher_step + self.loading + _STEP_OVERHEAD
        validation = self.steps.validation * (model.inference + self.loading)
        epoch = self.steps.training * step + validation + _EPOCH_OVERHEAD
        return epochs * epoch + _TRAINING_OVERHEAD

    def _predict(self, model: StepEstimate, images: int) -> float:
        """Seconds of the predictions on a number of images, within the run's limits."""
        batches = images / self.workspace.data.batch_size
        limit = self.workspace.limit
        if limit is not None:
            batches = batches * limit if isinstance(limit, float) else min(batches, limit)
        return batches * (model.prediction + self.loading)

    def _resolve(self, model: ModelSpec) -> InputSpec:
        return resolve_input(model, self.workspace.compute_image_stats())

    def _time(self, model: ModelSpec, *, train: bool = True) -> StepEstimate:
        loaded = load_untrained(self.workspace, model)
        images = count_images_per_batch(self.workspace.data, "train")
        trainer = self.workspace.spec.trainer
        return estimate(loaded.model, loaded.pixels, images, trainer, train=train)

    def _time_loading(self) -> float:
        """Seconds in which a batch is loaded, without augmentation."""
        data = self.workspace.data
        input_spec = self._resolve(self.workspace.spec.student)
        start = time.perf_counter()
        count = sum(len(batch) for batch in data.sample("train", input_spec, data.batch_size))
        return (time.perf_counter() - start) * data.batch_size / max(count, 1)
