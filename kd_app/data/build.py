"""Build the data of a run from the data group of a configuration."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

from lightning.pytorch import LightningDataModule

from kd_app.config.make import make
from kd_app.config.targets import resolve_target
from kd_app.data.base import RunData, require
from kd_app.data.external import ExternalDataModule
from kd_app.data.module import ImageData, find_active_options

_IMAGE_DATA = f"{ImageData.__module__}.{ImageData.__qualname__}"
_NOT_SETTINGS = ("name", "presets", "license", "refit", "judge")
"""Keys of the data group that are no arguments of the data module."""


def build_data(node: Mapping[str, Any], module: LightningDataModule | None = None) -> RunData:
    """Build the data from the data group `node`, or wrap `module` if one is passed.

    Raises `RequestError` for an option that the data module does not have.
    """
    if module is not None:
        data = ExternalDataModule(module)
    else:
        settings = {key: value for key, value in node.items() if key not in _NOT_SETTINGS}
        if node["_target_"] != _IMAGE_DATA:
            settings = _select_settings(settings)
        module = make(settings, LightningDataModule)
        if isinstance(module, ImageData):
            module.view_config = node["view"]
            return module
        data = ExternalDataModule(module, node)
    parameters = signature(type(module)).parameters
    for key, value in find_active_options(node).items():
        if key not in parameters:
            require(data, "options", because=f"data.{key}={value}", instead=f"leave data.{key} out")
    return data


def _select_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the settings of `ImageData` that a user's data module does not accept."""
    ours = signature(ImageData).parameters
    theirs = signature(resolve_target("data", settings["_target_"])).parameters
    return {key: value for key, value in settings.items() if key not in ours or key in theirs}
