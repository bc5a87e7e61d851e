"""Estimates the cost of a run on this machine from dry runs of its trainings."""

import resource
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kd_app.checks.context import CheckContext
from kd_app.checks.dry_run import DryRun
from kd_app.config.memory import read_available_memory
from kd_app.run.plan import format_seconds
from kd_app.training.timing import count_steps_per_epoch

_BYTES_PER_NUMBER = 4
"""Size of a stored number."""


@dataclass(frozen=True)
class Cost:
    """Cost of a run.

    seconds_per_epoch, epochs, training (seconds): of each role. measuring: seconds of
    the predictions on validation and test. memory, gpu_memory, disk, peak_disk: bytes;
    the peak is reached while the largest model trains. caching, cache: seconds and
    bytes of the teacher's cached outputs, which are part of all seconds and of disk.
    """

    seconds_per_epoch: dict[str, float]
    epochs: dict[str, int]
    training: dict[str, float]
    measuring: float
    memory: int
    gpu_memory: int
    disk: int
    peak_disk: int
    caching: float = 0.0
    cache: int = 0

    @property
    def seconds(self) -> float:
        """Seconds of the whole run."""
        return sum(self.training.values()) + self.measuring + self.caching


def estimate_cost(context: CheckContext, dry_runs: Sequence[DryRun]) -> Cost:
    """Sum up the times and sizes that the dry runs measured."""
    workspace = context.workspace
    data, spec = workspace.data, workspace.spec
    num_images = data.sizes["validation"] + data.sizes["test"]
    num_models = len(spec.controls) + 1 + (spec.teacher is not None)
    # Predictions also hold the index and the target, two int64: four numbers.
    predictions = num_models * num_images * (len(workspace.classes) + 4) * _BYTES_PER_NUMBER
    forecast = context.forecast
    caching, cache = (forecast.caching, forecast.cache_bytes) if forecast else (0.0, 0)
    dry_runs = [_subtract_teacher(context, each) for each in dry_runs]
    student_seconds = next(each.seconds for each in dry_runs if each.role == "student")
    wall_time_controls = {
        name for name, control in spec.controls.items() if control.match_wall_time
    }
    exported = max((each.model_bytes for each in dry_runs if each.role == "student"), default=0)
    disk = sum(each.model_bytes for each in dry_runs) + exported + predictions + cache
    peak = max((each.checkpoint_bytes + each.model_bytes for each in dry_runs), default=0)
    return Cost(
        seconds_per_epoch={each.role: each.seconds_per_epoch for each in dry_runs},
        epochs={each.role: each.epochs for each in dry_runs},
        training={
            each.role: student_seconds if each.role in wall_time_controls else each.seconds
            for each in dry_runs
        },
        measuring=num_images * sum(each.inference_seconds for each in dry_runs),
        memory=_read_peak_memory(),
        gpu_memory=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        disk=disk,
        peak_disk=disk + peak,
        caching=caching,
        cache=cache,
    )


def _subtract_teacher(context: CheckContext, dry_run: DryRun) -> DryRun:
    """The dry run, which had a running teacher, as with cached outputs if the run has
    them.
    """
    spec, forecast = context.workspace.spec, context.forecast
    if not forecast or not forecast.cache_bytes or dry_run.role not in spec.build_teacher_losses():
        return dry_run
    steps = count_steps_per_epoch(context.workspace.data, spec.trainer).training
    seconds = dry_run.seconds_per_epoch - steps * forecast.steps["teacher"].inference
    # the teacher was timed at another moment than the dry run
    return replace(dry_run, seconds_per_epoch=max(seconds, 0.1 * dry_run.seconds_per_epoch))


def describe_cost(context: CheckContext, cost: Cost) -> list[str]:
    """Format the cost as lines for the console."""
    trainer = context.workspace.spec.trainer
    epochs = ", ".join(
        f"{role} {cost.epochs[role]} x {_format_seconds(seconds)}"
        f" = {format_seconds(cost.training[role])}"
        for role, seconds in cost.seconds_per_epoch.items()
    )
    cached = ""
    if cost.cache:
        cached = (
            f"; {format_seconds(cost.caching)} and {_format_bytes(cost.cache)} of it for the"
            " teacher's cached outputs"
        )
    free_memory = _format_bytes(read_available_memory())
    free_disk = shutil.disk_usage(_find_existing_parent(context.workspace.stages.root)).free
    gpu = f", {_format_bytes(cost.gpu_memory)} on the GPU" if cost.gpu_memory else ""
    lines = [
        (
            f"Time: about {format_seconds(cost.seconds)} in all on {trainer.world_size} x"
            f" {trainer.accelerator}, {trainer.precision}; epochs: {epochs}{cached}"
        ),
        f"Memory: {_format_bytes(cost.memory)} in this process{gpu}; {free_memory} more are free",
        (
            f"Disk: {_format_bytes(cost.disk)} permanently, {_format_bytes(cost.peak_disk)} at"
            f" most; {_format_bytes(free_disk)} are free"
        ),
    ]
    if trainer.world_size > 1:
        lines.append(
            "Note: the steps were measured in one process. Several processes that share a"
            " processor are slower than this estimate."
        )
    return lines


def _read_peak_memory() -> int:
    """Peak memory (bytes) of this process plus that of its finished child processes."""
    scale = 1 if sys.platform == "darwin" else 1024
    return scale * sum(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def _find_existing_parent(path: Path) -> Path:
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else format_seconds(seconds)


def _format_bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(count / 2**20, 0.1):.1f} MiB"
