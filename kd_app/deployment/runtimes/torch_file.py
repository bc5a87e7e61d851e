"""A program of torch.export (``.pt2``), opened only where this very process wrote it.

``torch.export.load`` runs what a file says: it unpickles, evaluates shapes as Python
and compiles guards. A manifest that names the sha256 is no signature, so what lies on a
disk, a stage of an earlier command among it, is not opened.
"""

import io
import warnings
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kd_app.deployment.manifest import ManifestEntry
from kd_app.deployment.runtimes.base import RuntimeFile

_WRITTEN: set[str] = set()
"""The sha256 of each program that this process wrote."""


def mark_written(path: Path) -> None:
    """Called by who has just written the program `path`."""
    _WRITTEN.add(sha256(path.read_bytes()).hexdigest())


class TorchFile(RuntimeFile):
    """A program's module on the CPU."""

    def __init__(self, entry: ManifestEntry, module: Any) -> None:
        super().__init__(entry)
        self._module = module

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `RuntimeFile`."""
        with torch.inference_mode():
            found: NDArray[np.float32] = self._module(torch.from_numpy(images)).numpy()
        return found


def open_file(entry: ManifestEntry, *, threads: int | None) -> TorchFile:
    """The program of `entry`, which computes with as many threads as torch has been
    given. Raises `ValueError`: this process did not write it.
    """
    content = entry.path.read_bytes()
    if sha256(content).hexdigest() not in _WRITTEN:
        raise ValueError(
            f"{str(entry.path)!r} is a program of torch.export, and is not opened: loading one runs"
            " what it holds. Use another file of the same export, such as model.onnx"
            " ('formats=[onnx]'). In code of your own, torch.export.load(path).module() opens it,"
            " if you trust its sender."
        )
    with warnings.catch_warnings(action="ignore"):
        return TorchFile(entry, torch.export.load(io.BytesIO(content)).module())
