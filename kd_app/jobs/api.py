"""``kd-distill`` from Python."""

import torch
from lightning.pytorch import LightningDataModule
from torch import nn

from kd_app.config.compose import compose_config
from kd_app.config.memory import explain_memory_error
from kd_app.jobs import distill as job
from kd_app.reporting.runs import Run, load_run
from kd_app.run.spec import ExternalParts


def distill(
    *overrides: str,
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
    data: LightningDataModule | None = None,
) -> Run:
    """Run ``kd-distill <overrides>``, for example
    ``distill("data=digits", "loss.soft_target.temperature=2")``, and load the run.

    teacher: a trained module that returns logits, used without training. student: a
    module to train; controls train a copy with the same weights. data: a
    LightningDataModule of (image, target) batches.

    Raises `RequestError` for a wrong request and `RunError` for a run that failed.
    """
    config = compose_config("distill", overrides)
    # The run seeds torch; the caller's random state must not change.
    with torch.random.fork_rng(devices=[]), explain_memory_error("this run", config):
        folder = job.distill(config, own=ExternalParts(teacher, student, data))
    return load_run(folder)
