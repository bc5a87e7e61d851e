"""XNNPACK through ExecuTorch: lowering float or int8 graphs, and running programs."""

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


def lower(
    model: nn.Module, input_spec: InputSpec, path: Path, *, max_batch: int | None = None
) -> None:
    """Write `model` (in eval mode) as an ExecuTorch program.

    Operators without an XNNPACK kernel use portable kernels. Without `max_batch`, the
    program accepts one normalized image at a time; with `max_batch`, up to that many
    uint8 images (see `UInt8Model`). A graph that PT2E has converted is computed in
    int8: XNNPACK kernels replace the quantize and dequantize pairs.

    Raises `RequestError` if ExecuTorch is not installed, `RunError` if ExecuTorch can't
    lower the model.
    """
    with silence_executorch():
        try:
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
        except ImportError:
            raise _explain_missing_package() from None
        try:
            program = trace_model(model, input_spec, max_batch=max_batch)
            lowered = to_edge_transform_and_lower(
                program, partitioner=[XnnpackPartitioner()]
            ).to_executorch()
        except Exception as error:  # models can contain anything, so any error can occur
            raise RunError(
                f"The model can't be lowered to XNNPACK: {take_first_line(error)}"
            ) from error
    path.write_bytes(lowered.buffer)


def trace_model(
    model: nn.Module, input_spec: InputSpec, *, max_batch: int | None
) -> torch.export.ExportedProgram:
    """Export `model` as a graph with the input that `lower` describes."""
    if max_batch is None:
        shape = (1, input_spec.channels, input_spec.height, input_spec.width)
        return torch.export.export(model, (torch.zeros(shape),))
    batch = torch.export.Dim("batch", min=1, max=max_batch)
    images = make_blank_images(input_spec, 2)
    return torch.export.export(model, (images,), dynamic_shapes=({0: batch},))


class Lowered(nn.Module):
    """A program that `lower` wrote without `max_batch`, on the CPU with one thread.

    Images ``[B, C, H, W]`` are processed one by one. Raises `RequestError` if the file
    is not such a program, or if ExecuTorch is not installed.
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
                f"{str(path)!r} can't be run: {take_first_line(error)} The file is damaged, or was"
                " written by another version of ExecuTorch. Compress the run again."
            ) from None

    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Compute the logits, on the device of the images."""
        images = image.detach().to("cpu", torch.float32, memory_format=torch.contiguous_format)
        parts = [self._method.execute([one.contiguous()])[0].clone() for one in images.split(1)]
        return torch.cat(parts).to(image.device)


@cache
def _load_runtime() -> Any:
    """Load the runtime; limit it to one thread before any program has started more."""
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
        "ExecuTorch programs need the package executorch, which is not installed. Install it: pip"
        " install kd_app[deploy]"
    )


@contextmanager
def silence_executorch() -> Iterator[None]:
    """Suppress the log messages of ExecuTorch and torchao.

    Both libraries also write to the file descriptor, bypassing Python's streams.
    """
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
