"""Train a compressed student on: the run's own loss terms, from the same teacher."""

from dataclasses import replace

from pydantic import PositiveFloat, PositiveInt

from kd_app.compression.step import Step
from kd_app.training.roles import train
from kd_app.training.workshop import Member, Workshop


class Finetune(Step):
    """Train the student as the run did. null is the run's own: max_epochs, and lr, the
    top of the schedule, as the run's student had it.
    """

    recovers = True

    def __init__(self, *, max_epochs: PositiveInt | None, lr: PositiveFloat | None) -> None:
        self.max_epochs = max_epochs
        self.lr = lr

    def take(self, name: str, shop: Workshop, student: Member, teacher: Member | None) -> Member:
        """A training like any other: found again, gone on with after a kill, on as many
        ranks as the run.
        """
        recipe, node = shop.parts.recipe, shop.parts.config["student"]
        lr = self.lr or recipe.make_optimizer().rate(
            from_random=not shop.parts.student.origin.has_weights
        )
        recipe = replace(
            recipe,
            max_epochs=self.max_epochs or recipe.max_epochs,
            optimizer={**recipe.optimizer, "lr": lr},
        )
        path = student.request.origin.path
        kwargs = student.request.kwargs
        node = {**node, "pretrained": "auto", "checkpoint": str(path), "kwargs": kwargs}
        return train(shop.going_on(student.request, node, recipe), "student", teacher, stage=name)
