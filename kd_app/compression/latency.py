"""How long one image takes, of every student of a compression, in one runtime."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kd_app.config import InputSpec, RequestError, RunError
from kd_app.deployment.timing import Floats, time_interleaved
from kd_app.deployment.xnnpack import Lowered, lower
from kd_app.run.workspace import RunModel, Workspace

PROGRAM = "program.pte"
_ROUNDS = 20
_SECONDS = 1.0
"""About as long is each measured."""


def measure_latencies(shop: Workspace, members: Mapping[str, RunModel]) -> dict[str, float]:
    """Milliseconds of one image with one thread, by the members' names: the median of
    calls that they take in turns, each as its XNNPACK program.

    Empty, and the console says why, where ExecuTorch is not installed or can't take one
    of them.
    """
    try:
        programs = {name: _lower_program(shop, member) for name, member in members.items()}
        taken = time_models(
            {name: (Lowered(path), members[name].loaded.pixels) for name, path in programs.items()}
        )
    except (RequestError, RunError) as reason:
        shop.console.print(f"Note: latency is not measured: {reason}")
        return {}
    return {name: 1000 * float(np.median(seconds)) for name, seconds in taken.items()}


def _lower_program(shop: Workspace, member: RunModel) -> Path:
    if member.program is not None:
        return member.program
    created = member.loaded
    config, inputs = (
        {"model": member.spec.name, "pixels": vars(created.pixels)},
        {"weights": created.weights.sha256},
    )
    stage = shop.find_or_build(
        "program",
        config,
        inputs,
        lambda folder: lower(_copy_contiguous(created.model), created.pixels, folder / PROGRAM),
    )
    return stage.path / PROGRAM


def _copy_contiguous(model: nn.Module) -> nn.Module:
    """As it is lowered: ExecuTorch can't take weights of one channel in the order that
    measuring left them in, channels last.
    """
    return model.cpu().eval().to(memory_format=torch.contiguous_format)


def time_models(models: Mapping[str, tuple[nn.Module, InputSpec]]) -> dict[str, Floats]:
    """Seconds of each call with one image of noise, ``[rounds, calls]``."""
    with torch.inference_mode():
        calls = {
            name: partial(model, torch.rand(1, each.channels, each.height, each.width))
            for name, (model, each) in models.items()
        }
        once = {name: _time_fastest(call) for name, call in calls.items()}
        repeats = {
            name: max(1, int(_SECONDS / _ROUNDS / seconds)) for name, seconds in once.items()
        }
        return time_interleaved(calls, rounds=_ROUNDS, repeats=repeats, warm=1)


def _time_fastest(call: Callable[[], object]) -> float:
    return max(
        1e-6, float(time_interleaved({"": call}, rounds=3, repeats={"": 1}, warm=1)[""].min())
    )


def measure_latency_share(
    model: nn.Module, whole: nn.Module, pixels: InputSpec, folder: Path
) -> float:
    """The median latency of `model` over that of `whole`; their programs are written
    into `folder`, that of `whole` once.
    """
    paths = {"model": folder / f"model-{PROGRAM}", "whole": folder / f"whole-{PROGRAM}"}
    lower(model, pixels, paths["model"])
    if not paths["whole"].is_file():
        lower(whole, pixels, paths["whole"])
    taken = time_models({name: (Lowered(path), pixels) for name, path in paths.items()})
    return float(np.median(taken["model"]) / np.median(taken["whole"]))
