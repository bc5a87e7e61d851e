"""What a run will cost on this machine, from short trainings of the real thing."""

import resource
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kd_app.checks.context import CheckContext
from kd_app.checks.dry_run import DryRun
from kd_app.data.pixel_store import read_available_memory
from kd_app.run.plan import format_seconds

_WORDS = 4
"""Bytes of a number as it is stored."""


@dataclass(frozen=True)
class Cost:
    """seconds: of the whole run, `measuring` of them for the answers on validation and
    test; seconds_an_epoch: of each training.

    memory, gpu_memory, disk, peak_disk: bytes; the peak is reached while the largest
    model trains.
    """

    seconds_an_epoch: dict[str, float]
    epochs: dict[str, int]
    training: dict[str, float]
    measuring: float
    memory: int
    gpu_memory: int
    disk: int
    peak_disk: int

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(self.training.values()) + self.measuring


def estimate_cost(subject: CheckContext, rehearsals: Sequence[DryRun]) -> Cost:
    """Add up what was measured."""
    data, classes = subject.shop.data, len(subject.shop.classes)
    images = data.sizes["validation"] + data.sizes["test"]
    models = len(subject.shop.spec.controls) + 1 + (subject.shop.spec.teacher is not None)
    answers = models * images * (classes + 4) * _WORDS
    student = next(seen.seconds for seen in rehearsals if seen.role == "student")
    match_wall_time = {
        name for name, control in subject.shop.spec.controls.items() if control.match_wall_time
    }
    shipped = max((seen.model_bytes for seen in rehearsals if seen.role == "student"), default=0)
    kept = sum(seen.model_bytes for seen in rehearsals) + shipped + answers
    return Cost(
        seconds_an_epoch={seen.role: seen.seconds_an_epoch for seen in rehearsals},
        epochs={seen.role: seen.epochs for seen in rehearsals},
        training={
            seen.role: student if seen.role in match_wall_time else seen.seconds
            for seen in rehearsals
        },
        measuring=images * sum(seen.answer_seconds for seen in rehearsals),
        memory=_read_peak_memory(),
        gpu_memory=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        disk=kept,
        peak_disk=kept
        + max((seen.checkpoint_bytes + seen.model_bytes for seen in rehearsals), default=0),
    )


def describe_cost(subject: CheckContext, found: Cost) -> list[str]:
    """The cost in words."""
    trainer = subject.shop.spec.trainer
    each = [
        f"{role} {found.epochs[role]} x {_format_seconds(seconds)} = {format_seconds(found.training[role])}"
        for role, seconds in found.seconds_an_epoch.items()
    ]
    free = shutil.disk_usage(_find_existing_parent(subject.shop.stages.root)).free
    gpu = f", {_format_count(found.gpu_memory)} of the GPU's" if found.gpu_memory else ""
    told = [
        (
            f"Time: about {format_seconds(found.seconds)} in all on {trainer.world_size} x"
            f" {trainer.accelerator}, {trainer.precision}; epochs: {', '.join(each)}"
        ),
        (
            f"Memory: {_format_count(found.memory)} of this process{gpu}; {_format_count(read_available_memory())} more"
            " are free"
        ),
        (
            f"Disk: {_format_count(found.disk)} that stay, {_format_count(found.peak_disk)} at most; {_format_count(free)}"
            " are free"
        ),
    ]
    if trainer.world_size > 1:
        told.append(
            "Note: the steps were measured in one process; several that share a processor are"
            " slower than this says."
        )
    return told


def _read_peak_memory() -> int:
    """The most that this process, and those that it waited for, have held."""
    scale = 1 if sys.platform == "darwin" else 1024
    return scale * sum(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def _find_existing_parent(path: Path) -> Path:
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else format_seconds(seconds)


def _format_count(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(count / 2**20, 0.1):.1f} MiB"
