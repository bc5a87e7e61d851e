"""Train a job as a cached stage."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kd_app.callbacks.curve_log import read_points
from kd_app.models.create import create
from kd_app.run.model import RunModel, describe_reference
from kd_app.run.workspace import Workspace
from kd_app.training.fit import build_trained_spec, fit, prepare_resume
from kd_app.training.job import TrainingJob
from kd_app.training.launch import fit_distributed
from kd_app.training.record import read_training
from kd_app.training.trainer import TrainerSettings

Points = Sequence[tuple[dict[str, float], int]]
OnPoint = Callable[[dict[str, float], int], None]


class TrainingListener(Protocol):
    """Follows a training: a tracker, or a pruner that stops a training early."""

    def start(self, stage: str, teacher: Mapping[str, Any] | None, points: Points, /) -> OnPoint:
        """Called before the first step, with the curve points of an earlier attempt.

        Returns the callback for each further point and its step.
        """

    def finish(
        self,
        stage: str,
        model: Mapping[str, Any],
        teacher: Mapping[str, Any] | None,
        points: Callable[[], Points],
        /,
    ) -> None:
        """Called when the model is available, trained now or loaded from the cache."""


@dataclass(frozen=True)
class Listeners:
    """Several listeners as one, called in order."""

    listeners: Sequence[TrainingListener]

    def start(self, stage: str, teacher: Mapping[str, Any] | None, points: Points, /) -> OnPoint:
        callbacks = [each.start(stage, teacher, points) for each in self.listeners]

        def on_point(row: dict[str, float], step: int) -> None:
            for callback in callbacks:
                callback(row, step)

        return on_point

    def finish(
        self,
        stage: str,
        model: Mapping[str, Any],
        teacher: Mapping[str, Any] | None,
        points: Callable[[], Points],
        /,
    ) -> None:
        for each in self.listeners:
            each.finish(stage, model, teacher, points)


def train(
    workspace: Workspace,
    job: TrainingJob,
    *,
    listener: TrainingListener | None = None,
    trainer: TrainerSettings | None = None,
) -> RunModel:
    """Train `job`, or load the model of an earlier training of the same job.

    trainer: settings in place of the run's. The role of the model is the job's name.
    """
    settings = trainer or workspace.spec.trainer
    stage = workspace.find_or_build(
        job.name,
        job.describe_identity(workspace.data, settings),
        job.hash_inputs(workspace.data),
        lambda folder: _fit(workspace, job, settings, folder, listener),
    )
    model = _load_trained(workspace, job, stage.path)
    if listener is not None:
        teacher = job.teacher.describe() if job.teacher else None
        listener.finish(
            job.name, describe_reference(model), teacher, lambda: read_points(stage.path)
        )
    return model


def find_trained(workspace: Workspace, job: TrainingJob) -> RunModel | None:
    """The model of an earlier training of the same job; None if there is none."""
    identity = job.describe_identity(workspace.data, workspace.spec.trainer)
    stage = workspace.find(job.name, identity, job.hash_inputs(workspace.data))
    return _load_trained(workspace, job, stage.path) if stage else None


def _fit(
    workspace: Workspace,
    job: TrainingJob,
    settings: TrainerSettings,
    folder: Path,
    listener: TrainingListener | None,
) -> None:
    """Train in `folder`, in this process or in several distributed ones."""
    prepare_resume(folder, workspace.console.print)
    teacher = job.teacher.describe() if job.teacher else None
    on_point = listener.start(job.name, teacher, read_points(folder)) if listener else None
    if settings.world_size > 1:
        order = {
            "job": job.to_json(),
            **workspace.spec.to_json(),
            "data_folder": str(workspace.data_folder) if workspace.data_folder else None,
            "max_views": workspace.max_views,
            "folder": str(folder),
        }
        fit_distributed(order, folder, settings.world_size, listen=on_point)
    else:
        fit(job, workspace.data, settings, folder, console=workspace.console, listen=on_point)


def _load_trained(workspace: Workspace, job: TrainingJob, folder: Path) -> RunModel:
    record = read_training(folder)
    model = build_trained_spec(job.model, folder)
    created = create(model, job.input, job.count_outputs(workspace.data), seed=job.recipe.seed)
    return RunModel(job.name, model, created, record, folder)
