"""An ExecuTorch program on this CPU. It names operators and holds no code: its runtime
refuses one with operators that it has not.
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
    """A program's method ``forward``; more images than it takes at once go through it
    in parts.
    """

    def __init__(self, entry: ManifestEntry, program: Any, max_batch: int) -> None:
        super().__init__(entry)
        self._program = program  # the method lives as long as it does
        self._method = program.load_method("forward")
        planned = self._method.metadata.input_tensor_meta(0).sizes()[
            0
        ]  # less, where a kernel of the program takes no more
        self._max_batch = min(max_batch, planned)

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `RuntimeFile`."""
        flat = torch.from_numpy(
            images.reshape(-1)
        )  # of one channel there are several strides, of which the runtime takes one
        parts = flat.view(images.shape).split(self._max_batch)
        found: NDArray[np.float32] = torch.cat(
            [self._method.execute([part])[0].clone() for part in parts]
        ).numpy()
        return found


def open_file(entry: ManifestEntry, *, threads: int | None) -> ExecuTorchFile:
    """The file of `entry`; `threads` are those of the whole process. Raises
    `ValueError` where ExecuTorch does not take it.
    """
    max_batch = entry.told.get("max_batch")
    if not isinstance(max_batch, int) or max_batch < 1:
        raise ValueError(
            f"The manifest of {str(entry.path)!r} says max_batch={max_batch!r}; expected 1 or more."
            " Export the run again."
        )
    if threads is not None and portable_lib._threadpool_get_thread_count() != threads:
        portable_lib._unsafe_reset_threadpool(threads)
    try:
        return ExecuTorchFile(entry, Runtime.get().load_program(entry.path), max_batch)
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise ValueError(
            f"{str(entry.path)!r} is not run: ExecuTorch does not take it ({why}). Export the run"
            " again with this kd_app."
        ) from None
