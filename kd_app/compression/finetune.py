"""Train a compressed student on: the run's own loss terms, from the same teacher."""

from dataclasses import replace

from pydantic import PositiveFloat, PositiveInt

from kd_app.compression.step import Step
from kd_app.run.role_jobs import build_student_job
from kd_app.run.train import train
from kd_app.run.workspace import RunModel, Workspace


class Finetune(Step):
    """Train the student as the run did. null is the run's own: max_epochs, and lr, the
    top of the schedule, as the run's student had it.
    """

    recovers = True

    def __init__(self, *, max_epochs: PositiveInt | None, lr: PositiveFloat | None) -> None:
        self.max_epochs = max_epochs
        self.lr = lr

    def take(
        self, name: str, shop: Workspace, student: RunModel, teacher: RunModel | None
    ) -> RunModel:
        """A training like any other: found again, gone on with after a kill, on as many
        ranks as the run.
        """
        recipe = shop.spec.recipe
        lr = self.lr or recipe.make_optimizer().resolve_lr(
            from_random=not shop.spec.student.origin.has_weights
        )
        recipe = replace(
            recipe,
            max_epochs=self.max_epochs or recipe.max_epochs,
            optimizer={**recipe.optimizer, "lr": lr},
        )
        job = build_student_job(shop, teacher, name=name, model=student.spec, recipe=recipe)
        return replace(train(shop, job, listener=shop.tracker), role=student.role)
