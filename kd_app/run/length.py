"""Settings that make sense only in a longer run than this one."""

import math
from collections.abc import Iterator

from kd_app.callbacks.rules import list_callback_needs
from kd_app.config.length import LengthNeed, TrainingLength, describe_shortage
from kd_app.data.base import RunData
from kd_app.data.unlabeled import UNLABELED
from kd_app.models.composite import EmaTeacher
from kd_app.run.workspace import Workspace
from kd_app.tasks.base import Task
from kd_app.training.job import Recipe
from kd_app.training.timing import count_steps_per_epoch


def list_length_notes(workspace: Workspace) -> list[str]:
    """Sentences about the settings that need a longer run, each one once.

    Every part of a run declares its needs (`LengthNeed`); this is the only place that
    compares them with the run.
    """
    spec = workspace.spec
    recipes = {"teacher": spec.teacher_recipe, **spec.controls, "student": spec.recipe}
    roles: dict[str, list[str]] = {}
    for role, recipe in recipes.items():
        if recipe is None or recipe.max_epochs == 0:
            continue
        length = measure_length(workspace, recipe)
        needs = list_recipe_needs(recipe, workspace.task)
        for need in (*needs, *list_run_needs(workspace, recipe)):
            sentence = describe_shortage(need, length)
            if sentence is not None:
                roles.setdefault(sentence, []).append(role)
    notes = [f"{', '.join(names)}: {sentence}" for sentence, names in roles.items()]
    return notes + _note_large_batch(workspace.data)


def _note_large_batch(data: RunData) -> list[str]:
    images = sum(data.sizes.get(name, 0) for name in ("train", UNLABELED))
    if data.name is not None or images >= data.batch_size:
        return []
    return [
        f"data.batch_size={data.batch_size} is more than the {images:,} images to train on, so"
        " that an epoch is a single step with all of them. Smaller batches train more steps."
    ]


def measure_length(workspace: Workspace, recipe: Recipe) -> TrainingLength:
    """The length of the training with this recipe."""
    trainer = workspace.spec.trainer
    batches = count_steps_per_epoch(workspace.data, trainer).training
    steps = math.ceil(batches / trainer.accumulate_grad_batches) * recipe.max_epochs
    return TrainingLength(steps, recipe.max_epochs, batches)


def list_recipe_needs(recipe: Recipe, task: Task) -> Iterator[LengthNeed]:
    """The lengths that schedules and callbacks need."""
    schedules = {"scheduler": recipe.make_schedule()}
    for name, schedule in recipe.build_loss().schedules.items():
        schedules[f"loss.{name}.schedule"] = schedule
    for key, schedule in schedules.items():
        yield from _name_owner(key, schedule.list_length_needs())
    for name, callback in recipe.make_callbacks(task).items():
        needs = list_callback_needs(callback, recipe.callbacks[name])
        yield from _name_owner(f"callbacks.{name}", needs)


def list_run_needs(workspace: Workspace, recipe: Recipe) -> Iterator[LengthNeed]:
    """The lengths that the trainer, the views and the teacher need."""
    spec, trainer = workspace.spec, workspace.spec.trainer
    yield LengthNeed(
        f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}",
        trainer.accumulate_grad_batches,
        "batches",
        "a step ends with the epoch",
        "Set a smaller trainer.accumulate_grad_batches",
    )
    if isinstance(spec.teacher, EmaTeacher):
        yield LengthNeed(
            f"teacher.decay={spec.teacher.decay:g}",
            math.ceil(1 / (1 - spec.teacher.decay)),
            "steps",
            "the teacher is the plain mean of all weights so far",
            "Set a smaller teacher.decay or more epochs",
        )


def _name_owner(key: str, needs: Iterator[LengthNeed]) -> Iterator[LengthNeed]:
    for need in needs:
        yield need._replace(setting=f"{key}.{need.setting}")
