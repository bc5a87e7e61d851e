"""``kd-distill`` from Python."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import nn

from kd_app.config import RequestError
from kd_app.config.compose import choose_all_labels, compose_config
from kd_app.config.memory import explain_memory_error
from kd_app.data.loader_module import wrap_loaders
from kd_app.jobs.label_trials import distill_then_label
from kd_app.reporting.runs import Run, load_run
from kd_app.specs.spec import ExternalParts


def distill(
    *overrides: str,
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
    data: LightningDataModule | Sequence[Any] | Mapping[str, Any] | None = None,
) -> Run:
    """Run ``kd-distill <overrides>``, for example
    ``distill("data=digits", "loss.soft_target.temperature=2")``, and load the run.

    teacher: a trained module that returns logits, used without training. student: a
    module to train; controls train a copy with the same weights. data: a
    LightningDataModule of (image, target) batches, or three loaders of such batches,
    ``(train, validation, test)``, or by name.

    Raises `RequestError` for a wrong request and `RunError` for a run that failed.
    """
    for name, module in (("teacher", teacher), ("student", student)):
        if module is not None and not isinstance(module, nn.Module):
            raise RequestError(
                f"{name}= is of type {type(module).__name__}. Expected: a torch.nn.Module that"
                f' returns logits. A timm model is chosen by name: distill("{name}.name=resnet18").'
            )
    words = overrides if data is None else choose_all_labels(overrides)
    config = compose_config("distill", words)
    parts = ExternalParts(teacher, student, None if data is None else wrap_loaders(data))
    # The run seeds torch; the caller's random state must not change.
    with torch.random.fork_rng(devices=[]), explain_memory_error("this run", config):
        folder = distill_then_label(config, own=parts)
    return load_run(folder)
