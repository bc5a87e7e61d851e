"""ExecuTorch programs on the CPU.

A program contains names of operators and no code; the runtime rejects a program with
unknown operators.
"""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kd_app.deployment.manifest import ManifestEntry
from kd_app.deployment.runtimes.base import RuntimeFile

with warnings.catch_warnings(action="ignore"):
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime


class ExecuTorchFile(RuntimeFile):
    """The method ``forward`` of a program; large batches are split into parts."""

    def __init__(self, entry: ManifestEntry, program: Any, max_batch: int) -> None:
        super().__init__(entry)
        # The method is valid only while the program exists.
        self._program = program
        self._method = program.load_method("forward")
        # Memory may be planned for smaller batches, if a kernel requires that.
        planned = self._method.metadata.input_tensor_meta(0).sizes()[0]
        self._max_batch = min(max_batch, planned)

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        # With one channel, several strides are valid; the runtime accepts only those of
        # a fresh view.
        flat = torch.from_numpy(images.reshape(-1))
        parts = flat.view(images.shape).split(self._max_batch)
        outputs = [self._method.execute([part])[0].clone() for part in parts]
        logits: NDArray[np.float32] = torch.cat(outputs).numpy()
        return logits


def open_file(entry: ManifestEntry, *, threads: int | None) -> ExecuTorchFile:
    """Open the file of `entry`; `threads` applies to the whole process.

    Raises `ValueError` if ExecuTorch rejects the file.
    """
    max_batch = entry.record.get("max_batch")
    if not isinstance(max_batch, int) or max_batch < 1:
        raise ValueError(
            f"The manifest of {str(entry.path)!r} has max_batch={max_batch!r}; expected 1 or more."
            " Export the run again."
        )
    if threads is not None and portable_lib._threadpool_get_thread_count() != threads:
        portable_lib._unsafe_reset_threadpool(threads)
    try:
        return ExecuTorchFile(entry, Runtime.get().load_program(entry.path), max_batch)
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise ValueError(
            f"{str(entry.path)!r} can't be opened: ExecuTorch rejects the file ({why}). Export the"
            " run again with this version of kd_app."
        ) from None
