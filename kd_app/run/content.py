"""What a command leaves in its folder ``out=``: recognized, so that ``overwrite=true``
removes nothing else.
"""

import re
from pathlib import Path
from typing import Final

from kd_app.config import RequestError
from kd_app.config.records import load_record
from kd_app.models.model_config import CONFIG as MODEL_CONFIG
from kd_app.models.save import CONVERTED, INT8, INT8_OF_BYTES, PROGRAM, WEIGHTS
from kd_app.reporting.card import CARD
from kd_app.reporting.html.write import FILES as REPORT
from kd_app.reporting.results import read
from kd_app.run_files import (
    CASCADE,
    CONFIG,
    EXPORT,
    FILES,
    MANIFEST,
    MOMENTS,
    REFERENCE,
    RESULTS,
    STUDENT,
    TEACHER,
)

_KEYS: Final = (
    {"data", "student", "trainer", "verdict", "stages"},
    {"run", "stages", "split", "known_images"},
    {"run", "stages", "formats", "compared_images"},
)
"""Keys in the config.yaml of kd-distill and kd-compress, of kd-evaluate, of kd-export.
"""
_FILES: Final = {
    *(*FILES, CASCADE, MANIFEST),
    *REPORT,
}
_EXPORTED: Final = re.compile(r"(?:model|student|teacher)\w*\.(?:onnx|pte|pt2)")
_MODELS: Final = {
    STUDENT: {MODEL_CONFIG, WEIGHTS, PROGRAM, CONVERTED, INT8, INT8_OF_BYTES, CARD},
    TEACHER: {MOMENTS, REFERENCE},
}
_TRACKERS: Final = {
    "wandb": re.compile(r"(?:offline-)?run-[\w-]+|latest-run|debug[\w-]*\.log"),
    "tensorboard": re.compile(r"\w+"),
    "mlflow": re.compile(r"\d+|models"),
}
"""The folder of each tracker, and what it holds."""
_INNER: Final = (EXPORT, "compressed")
"""Folders of other commands, by default in the folder of the run."""


def is_run(folder: Path) -> bool:
    """Whether a command of kd_app has written this folder: its config.yaml has the keys
    of a command, or its results.json is valid.
    """
    try:
        config = load_record(folder / CONFIG, expected="")
    except RequestError:
        config = None
    if isinstance(config, dict) and any(keys <= set(config) for keys in _KEYS):
        return True
    try:
        return bool(read(folder / RESULTS))
    except RequestError:
        return False


def list_left(folder: Path) -> list[Path]:
    """The files and folders directly in a run's folder that the run has left.

    Raises `RequestError` if the folder of a model or of a tracker holds anything else.
    """
    return [path for path in _list_visible(folder) if _is_left(path)]


def _is_left(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return path.name in _FILES or _EXPORTED.fullmatch(path.name) is not None
    if path.name in _INNER:
        return is_run(path) and all(map(_is_left, _list_visible(path)))
    if path.name not in _MODELS and path.name not in _TRACKERS:
        return False
    _check_entries(path)
    return True


def _check_entries(folder: Path) -> None:
    for path in _list_visible(folder):
        if folder.name in _MODELS:
            is_known = path.name in _MODELS[folder.name]
        else:
            is_known = _TRACKERS[folder.name].fullmatch(path.name) is not None
        if not is_known:
            raise RequestError(
                f"overwrite=true would remove {str(path)!r}, which is no file of a run. Nothing was"
                " deleted or written. Move it elsewhere, or choose another folder with out=."
            )


def _list_visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
