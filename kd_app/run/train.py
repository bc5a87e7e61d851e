"""Train a job as a stage of the run's cache, or find the stage that did."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kd_app.models.create import create
from kd_app.run.workspace import RunModel, Workspace, describe_reference
from kd_app.training.curve_log import read_points
from kd_app.training.distributed.launch import fit_distributed
from kd_app.training.fit import RECORD, fit, prepare_resume, specify_trained
from kd_app.training.job import TrainingJob
from kd_app.training.trainer import TrainerSettings

Points = Sequence[tuple[dict[str, float], int]]
OnPoint = Callable[[dict[str, float], int], None]


class TrainingListener(Protocol):
    """Follows a training: a tracker, or a pruner that ends it early."""

    def start(self, stage: str, teacher: Mapping[str, Any] | None, points: Points, /) -> OnPoint:
        """Called before the first step with the points of an earlier attempt; returns
        what takes each further point of the curves and its step.
        """

    def finish(
        self,
        stage: str,
        model: Mapping[str, Any],
        teacher: Mapping[str, Any] | None,
        points: Callable[[], Points],
        /,
    ) -> None:
        """Called when the model is there, trained now or found."""


@dataclass(frozen=True)
class Listeners:
    """Several listeners as one; the first is called first."""

    listeners: Sequence[TrainingListener]

    def start(self, stage: str, teacher: Mapping[str, Any] | None, points: Points, /) -> OnPoint:
        """See `TrainingListener`."""
        calls = [each.start(stage, teacher, points) for each in self.listeners]

        def listen(row: dict[str, float], step: int) -> None:
            for call in calls:
                call(row, step)

        return listen

    def finish(
        self,
        stage: str,
        model: Mapping[str, Any],
        teacher: Mapping[str, Any] | None,
        points: Callable[[], Points],
        /,
    ) -> None:
        """See `TrainingListener`."""
        for each in self.listeners:
            each.finish(stage, model, teacher, points)


def train(
    workspace: Workspace,
    job: TrainingJob,
    *,
    listener: TrainingListener | None = None,
    trainer: TrainerSettings | None = None,
) -> RunModel:
    """Train `job`, or find the stage that did; `trainer` if not the run's own. The
    model's role is the name of the job.
    """
    settings = trainer or workspace.spec.trainer
    stage = workspace.find_or_build(
        job.name,
        job.identity(workspace.data, settings),
        job.inputs(workspace.data),
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
    """The model that an earlier run trained by the same job; None where `train` would
    have to train it.
    """
    identity = job.identity(workspace.data, workspace.spec.trainer)
    stage = workspace.find(job.name, identity, job.inputs(workspace.data))
    return _load_trained(workspace, job, stage.path) if stage else None


def _fit(
    workspace: Workspace,
    job: TrainingJob,
    settings: TrainerSettings,
    folder: Path,
    listener: TrainingListener | None,
) -> None:
    """Train in `folder`, in this process or on ranks."""
    prepare_resume(folder, workspace.console.print)
    teacher = job.teacher.describe() if job.teacher else None
    listen = listener.start(job.name, teacher, read_points(folder)) if listener else None
    if settings.world_size > 1:
        order = {
            "job": job.to_json(),
            **workspace.spec.to_json(),
            "data_folder": str(workspace.data_folder) if workspace.data_folder else None,
            "folder": str(folder),
        }
        fit_distributed(order, folder, settings.world_size, listen=listen)
    else:
        fit(job, workspace.data, settings, folder, console=workspace.console, listen=listen)


def _load_trained(workspace: Workspace, job: TrainingJob, folder: Path) -> RunModel:
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    model = specify_trained(job.model, folder)
    created = create(model, job.input, len(workspace.classes), seed=job.recipe.seed)
    return RunModel(job.name, model, created, record, folder)
