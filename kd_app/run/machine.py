"""``trainer=`` of the commands that open a finished run or a model: the device, and
what else they may change of the run's own settings.
"""

from collections.abc import Mapping
from typing import Any, Final

import torch

from kd_app.config.paths import read_settings
from kd_app.specs.spec import Config
from kd_app.training.trainer import TrainerSettings

_MACHINE: Final = ("accelerator", "devices", "num_nodes", "precision")
"""Settings that a choice of ``trainer=`` sets; all others have the same default in all
choices.
"""
_ONE_PROCESS: Final = {"devices": 1, "num_nodes": 1, "precision": "auto"}
_MEASURED: Final = ("accelerator", "limit_test_batches")
"""The settings that a measurement uses."""


def adapt_trainer(recorded: Config, command: Config, *, measures: bool) -> Config:
    """The trainer of a finished run with the changes of the command.

    measures: nothing is trained, so the run's own machine and its number of devices do
    not count.
    """
    changes = list_changes(command)
    if not measures:
        return {**recorded, **changes}
    changes = {key: value for key, value in changes.items() if key in _MEASURED}
    return {**recorded, "accelerator": "auto", **_ONE_PROCESS, **changes}


def list_changes(command: Config) -> Config:
    """The settings of ``trainer=`` that the command chose: those of the machine, and
    all others that are not the default.
    """
    node: Mapping[str, Any] = command.get("trainer") or {}
    defaults = {**load_defaults(), "max_epochs": _find_preset(command)}
    return {
        key: value
        for key, value in node.items()
        if value is not None and (key in _MACHINE or value != defaults.get(key))
    }


def choose_device(command: Config) -> torch.device:
    """The device of a command that measures or predicts. Raises `RequestError` if this
    machine lacks it.
    """
    trainer = adapt_trainer({**load_defaults(), "max_epochs": 1}, command, measures=True)
    return TrainerSettings(
        **{key: value for key, value in trainer.items() if key != "_target_"}
    ).device


def choose_limit(command: Config) -> float | None:
    """The share or number of batches of a split to measure; None: all."""
    limit: float | None = command["limit"]
    trainer = command.get("trainer") or {}
    return trainer.get("limit_test_batches") if limit is None else limit


def remove_machine(command: Config) -> Config:
    """The configuration of a measurement for its folder: the same on all machines."""
    return {key: value for key, value in command.items() if key != "trainer"}


def describe_unused(command: Config) -> tuple[str, ...]:
    """A note about settings of ``trainer=`` that do nothing, because a measurement
    runs in one process and in float32.
    """
    automatic = {"devices": (1, "auto"), "num_nodes": (1,), "precision": ("auto", "32-true")}
    names = [
        f"trainer.{key}"
        for key, value in list_changes(command).items()
        if key not in _MEASURED and value not in automatic.get(key, ())
    ]
    if not names:
        return ()
    return (
        f"{', '.join(names)} {'does' if len(names) == 1 else 'do'} nothing here: models are"
        " measured in one process and in float32.",
    )


def load_defaults() -> Config:
    """The settings of ``trainer=auto``."""
    return read_settings("trainer/auto")


def _find_preset(command: Config) -> Any:
    """The default number of epochs, which depends on the data."""
    presets = (command.get("data") or {}).get("presets") or {}
    return presets.get("epochs")
