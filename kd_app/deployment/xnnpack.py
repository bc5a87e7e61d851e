"""XNNPACK through ExecuTorch: a float or int8 graph lowered to a program, and the
program run on this CPU.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kd_app.config import InputSpec, RequestError, RunError
from kd_app.config.errors import take_first_line
from kd_app.deployment.formats.base import make_blank_images


def lower(model: nn.Module, pixels: InputSpec, path: Path, *, max_batch: int | None = None) -> None:
    """Write `model` (in eval mode) as a program; what XNNPACK has no kernel for stays
    portable.

    Without `max_batch` it takes one normalized image at a time; with it up to so many
    uint8 ones, as `UInt8Model` does. A graph that PT2E converted is computed in int8:
    XNNPACK's kernels take the place of its quantize and dequantize pairs. Raises
    `RequestError` where ExecuTorch is not installed, `RunError` where it can't take the
    model.
    """
    with silence_executorch():
        try:
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
        except ImportError:
            raise _explain_missing_package() from None
        try:
            program = trace_model(model, pixels, max_batch=max_batch)
            lowered = to_edge_transform_and_lower(
                program, partitioner=[XnnpackPartitioner()]
            ).to_executorch()
        except Exception as error:  # of many kinds: what a model may hold has no bounds
            raise RunError(
                f"The model can't be lowered to XNNPACK: {take_first_line(error)}"
            ) from error
    path.write_bytes(lowered.buffer)


def trace_model(
    model: nn.Module, pixels: InputSpec, *, max_batch: int | None
) -> torch.export.ExportedProgram:
    """`model` as a graph of what `lower` says it takes."""
    if max_batch is None:
        return torch.export.export(
            model, (torch.zeros(1, pixels.channels, pixels.height, pixels.width),)
        )
    batch = torch.export.Dim("batch", min=1, max=max_batch)
    return torch.export.export(model, (make_blank_images(pixels, 2),), dynamic_shapes=({0: batch},))


class Lowered(nn.Module):
    """A program that `lower` wrote, on this CPU with one thread; images ``[B, C, H,
    W]`` go through it one after the other.

    Raises `RequestError` for a file that is no such program, or where ExecuTorch is not
    installed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        runtime = _load_runtime()
        try:
            with silence_executorch():
                self._program = runtime.load_program(path)
                self._method = self._program.load_method("forward")
        except RuntimeError as error:
            raise RequestError(
                f"{str(path)!r} can't be run: {take_first_line(error)} It is damaged, or of another"
                " version of ExecuTorch. Make the model again."
            ) from None

    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """The logits, where the images are."""
        images = image.detach().to("cpu", torch.float32, memory_format=torch.contiguous_format)
        return torch.cat(
            [self._method.execute([one.contiguous()])[0].clone() for one in images.split(1)]
        ).to(image.device)


@cache
def _load_runtime() -> Any:
    """ExecuTorch's runtime, whose threads are set to one before any program has taken
    some.
    """
    try:
        with silence_executorch():
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime

            if portable_lib._threadpool_get_thread_count() != 1:
                portable_lib._unsafe_reset_threadpool(1)
            return Runtime.get()
    except ImportError:
        raise _explain_missing_package() from None


def _explain_missing_package() -> RequestError:
    return RequestError(
        "ExecuTorch's programs need the package executorch, which is not installed. Install it: pip"
        " install kd_app[deploy]"
    )


@contextmanager
def silence_executorch() -> Iterator[None]:
    """Without what ExecuTorch and torchao write about this machine and themselves, past
    Python's own streams, too.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
