"""torch.export programs (``.pt2``), opened only in the process that wrote them.

``torch.export.load`` runs code from the file: it unpickles, evaluates shapes as Python
and compiles guards. The sha256 in a manifest is not a signature, so files from disk are
not opened, including stages of an earlier command.
"""

import io
import warnings
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kd_app.deployment.manifest import ManifestEntry
from kd_app.deployment.own_files import is_written
from kd_app.deployment.runtimes.base import RuntimeFile


class TorchFile(RuntimeFile):
    """The module of a program, on the CPU."""

    def __init__(self, entry: ManifestEntry, module: Any) -> None:
        super().__init__(entry)
        self._module = module

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = self._module(torch.from_numpy(images)).numpy()
        return logits


def open_file(entry: ManifestEntry, *, threads: int | None) -> TorchFile:
    """Open the program of `entry`; the number of threads is that of torch.

    Raises `ValueError` if another process wrote the file.
    """
    content = entry.path.read_bytes()
    if not is_written(sha256(content).hexdigest()):
        raise ValueError(
            f"{str(entry.path)!r} is a torch.export program and is not opened: loading runs code"
            " from the file. Use another file of the same export, such as model.onnx"
            " ('formats=[onnx]'). If you trust the sender, torch.export.load(path).module() opens"
            " the file in your own code."
        )
    with warnings.catch_warnings(action="ignore"):
        return TorchFile(entry, torch.export.load(io.BytesIO(content)).module())
