"""``data.refit``: after the best epoch is known, train student and controls again on
train and validation.
"""

from collections.abc import Mapping
from dataclasses import replace

from kd_app.config import RequestError
from kd_app.data.base import RunData
from kd_app.run.model import RunModel
from kd_app.run.train import train
from kd_app.run.workspace import Workspace
from kd_app.specs.schema import RefitSetting
from kd_app.specs.spec import Config
from kd_app.training.job import TrainingJob, format_epochs

_MONITOR = "monitor"
"""The setting of callbacks that follow a validation metric."""


def is_refit_due(config: Config, *, trial: int | None, is_winner: bool) -> bool:
    """Whether this run trains its final models again: with ``data.refit`` a single run,
    and of a sweep the winner.

    Raises `RequestError` if no choice on validation has named the winner.
    """
    if not RefitSetting.read(config["data"]):
        return False
    if config["test"] == "never":
        raise RequestError(
            "data.refit=true trains the final student on the validation images, too, but"
            " test=never makes this run a candidate that others are compared with on those images."
            " Use test=auto, or remove data.refit."
        )
    if trial is None or is_winner:
        return True
    if config["test"] != "auto":
        raise RequestError(
            f"data.refit=true trains the winner of a sweep again, but with test={config['test']}"
            " no winner is chosen: every trial is tested. Use test=auto, or remove data.refit."
        )
    return False


def describe_refit(workspace: Workspace) -> str:
    """The line of the plan; empty without ``data.refit``."""
    if not RefitSetting.read(workspace.spec.config["data"]):
        return ""
    roles = ["student", *workspace.spec.controls]
    return (
        f"Refit: {', '.join(roles)} trained again on train and validation"
        f" ({count_images(workspace.data):,} images), each for the epochs that validation selects"
        " (in a sweep only the winner); the teacher is not"
    )


def count_images(data: RunData) -> int:
    """The number of images of train and validation."""
    return data.sizes["train"] + data.sizes["validation"]


def build_refit_job(job: TrainingJob, record: Mapping[str, object]) -> TrainingJob:
    """The training on train and validation, for as many epochs as the best epoch of the
    training of `job`, with the kind of weights that was exported there.

    record: of the training of `job`. The learning rate follows its whole schedule in
    these epochs. Callbacks that follow a validation metric are left out, and a cached
    teacher is run instead, because its outputs do not cover the validation images.
    """
    best = record["best"]
    assert isinstance(best, Mapping)
    callbacks = {name: node for name, node in job.recipe.callbacks.items() if _MONITOR not in node}
    return replace(
        job,
        name=f"{job.name}-refit",
        recipe=replace(job.recipe, max_epochs=int(best["epoch"]) + 1, callbacks=callbacks),
        teacher=job.teacher and replace(job.teacher, validation_logits=None, cached=None),
        refit_weights=best.get("weights", "raw"),
    )


def train_again(workspace: Workspace, job: TrainingJob, selected: RunModel) -> RunModel:
    """Train the model of `job` again on train and validation. selected: the model of
    the training in which validation chose the epoch.
    """
    again = build_refit_job(job, selected.record)
    images = count_images(workspace.data)
    workspace.console.print(
        f"Refit: {selected.role} on {images:,} images for {format_epochs(again.recipe.max_epochs)}"
    )
    model = train(workspace, again)
    record = {
        **selected.record,
        "refit": {"images": images, "epochs": again.recipe.max_epochs},
    }
    return replace(model, role=selected.role, record=record)


def describe_outcome(models: Mapping[str, RunModel]) -> list[str]:
    """Notes for results, page and console about the models that were trained again."""
    epochs = {
        role: model.record["refit"] for role, model in models.items() if "refit" in model.record
    }
    if not epochs:
        return []
    images = next(iter(epochs.values()))["images"]
    listed = ", ".join(
        f"{role} for {format_epochs(each['epochs'])}" for role, each in epochs.items()
    )
    return [
        f"data.refit: after validation had chosen the epochs, these models were trained again on"
        f" train and validation, {images:,} images: {listed}. The weights and all figures on test"
        " are those of the second training; the figures on validation are those of the first, the"
        " selection run."
    ]
