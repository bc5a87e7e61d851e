"""Fine-tunes a compressed student with the run's loss terms and teacher."""

from dataclasses import replace

from torch import nn

from kd_app.compression.step import Step
from kd_app.config.typed import Epochs
from kd_app.run.model import RunModel
from kd_app.run.role_jobs import build_student_job
from kd_app.run.train import train
from kd_app.run.workspace import Workspace
from kd_app.schedules import LearningRate
from kd_app.training.job import Recipe


class Finetune(Step):
    """Train the student as the run did.

    max_epochs: null for that of the run. lr: peak of the schedule; null for that of the
    run's student.
    """

    recovers = True

    def __init__(self, *, max_epochs: Epochs | None, lr: LearningRate | None) -> None:
        self.max_epochs = max_epochs
        self.lr = lr

    def take(
        self, name: str, workspace: Workspace, student: RunModel, teacher: RunModel | None
    ) -> RunModel:
        """Train the student like any other model: cached, resumable, on as many ranks
        as the run.
        """
        has_weights = workspace.spec.student.origin.has_weights
        recipe = self.adapt_recipe(
            workspace.spec.recipe, student.loaded.model, from_random=not has_weights
        )
        job = build_student_job(workspace, teacher, name=name, model=student.spec, recipe=recipe)
        model = train(workspace, job, listener=workspace.tracker)
        return replace(model, role=student.role)

    def adapt_recipe(self, recipe: Recipe, student: nn.Module, *, from_random: bool) -> Recipe:
        """The run's recipe with this step's epochs and learning rate for the `student`.
        from_random: whether the run's student started from random weights.
        """
        lr = self.lr or recipe.make_optimizer().resolve_lr(student, from_random=from_random)
        return replace(
            recipe,
            max_epochs=self.max_epochs or recipe.max_epochs,
            optimizer={**recipe.optimizer, "lr": lr},
        )
