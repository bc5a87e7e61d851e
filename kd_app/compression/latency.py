"""Measures the latency of the students of a compression, all in the same runtime."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kd_app.config import InputSpec, RequestError, RunError
from kd_app.deployment.timing import Floats, time_interleaved
from kd_app.deployment.xnnpack import Lowered, lower
from kd_app.run.model import RunModel
from kd_app.run.workspace import Workspace

PROGRAM = "program.pte"
_ROUNDS = 20
_SECONDS = 1.0
"""Approximate duration of each model's measurement."""


def measure_latencies(workspace: Workspace, models: Mapping[str, RunModel]) -> dict[str, float]:
    """Median milliseconds per image on one thread, by the models' names. Each model
    runs as an XNNPACK program, in turns with the others.

    Empty if ExecuTorch is not installed or can't run one of the models; the console
    then names the reason.
    """
    try:
        programs = {name: _lower_program(workspace, model) for name, model in models.items()}
        timings = time_models(
            {name: (Lowered(path), models[name].loaded.pixels) for name, path in programs.items()}
        )
    except (RequestError, RunError) as reason:
        workspace.console.print(f"Note: latency is not measured: {reason}")
        return {}
    return {name: 1000 * float(np.median(seconds)) for name, seconds in timings.items()}


def _lower_program(workspace: Workspace, model: RunModel) -> Path:
    if model.program is not None:
        return model.program
    loaded = model.loaded
    stage = workspace.find_or_build(
        "program",
        {"model": model.spec.name, "pixels": vars(loaded.pixels)},
        {"weights": loaded.weights.sha256},
        lambda folder: lower(_make_contiguous(loaded.model), loaded.pixels, folder / PROGRAM),
    )
    return stage.path / PROGRAM


def _make_contiguous(model: nn.Module) -> nn.Module:
    """Undo the channels-last format that measuring set: ExecuTorch rejects weights of
    one channel in that format.
    """
    return model.cpu().eval().to(memory_format=torch.contiguous_format)


def time_models(models: Mapping[str, tuple[nn.Module, InputSpec]]) -> dict[str, Floats]:
    """Seconds of each call with one image of noise, ``[rounds, calls]``."""
    with torch.inference_mode():
        calls = {
            name: partial(model, torch.rand(1, each.channels, each.height, each.width))
            for name, (model, each) in models.items()
        }
        fastest = {name: _time_fastest(call) for name, call in calls.items()}
        repeats = {
            name: max(1, int(_SECONDS / _ROUNDS / seconds)) for name, seconds in fastest.items()
        }
        return time_interleaved(calls, rounds=_ROUNDS, repeats=repeats, warm=1)


def _time_fastest(call: Callable[[], object]) -> float:
    seconds = time_interleaved({"": call}, rounds=3, repeats={"": 1}, warm=1)[""]
    return max(1e-6, float(seconds.min()))


def measure_latency_share(
    model: nn.Module, original: nn.Module, input_spec: InputSpec, folder: Path
) -> float:
    """Median latency of `model` divided by that of `original`. Their programs are
    written into `folder`, that of `original` only once.
    """
    paths = {"model": folder / f"model-{PROGRAM}", "original": folder / f"whole-{PROGRAM}"}
    lower(model, input_spec, paths["model"])
    if not paths["original"].is_file():
        lower(original, input_spec, paths["original"])
    timings = time_models({name: (Lowered(path), input_spec) for name, path in paths.items()})
    return float(np.median(timings["model"]) / np.median(timings["original"]))
