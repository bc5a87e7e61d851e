"""The main job from Python."""

import torch
from lightning.pytorch import LightningDataModule
from torch import nn

from kd_app.config.compose import compose_config
from kd_app.jobs import distill as run
from kd_app.reporting.runs import Run, load_run
from kd_app.run.spec import ExternalParts


def distill(
    *overrides: str,
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
    data: LightningDataModule | None = None,
) -> Run:
    """What ``kd-distill <overrides>`` does, with the words of the command line:
    ``distill("data=digits", "loss.soft_target.temperature=2")``.

    teacher: a trained module that gives logits, used as it is. student: a module to
    train; the control gets a copy with the same weights. data: a LightningDataModule of
    (image, target) batches. Raises `RequestError` for a wrong request and `RunError`
    for a run that failed.
    """
    config = compose_config("distill", overrides)
    with torch.random.fork_rng(devices=[]):  # the caller draws on as if nothing had been drawn
        return load_run(run.distill(config, own=ExternalParts(teacher, student, data)))
