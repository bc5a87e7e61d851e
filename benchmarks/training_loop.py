"""How fast is the training loop, with logging, compared with a bare loop? ``python -m
benchmarks.training_loop``

Both train in one process and take turns, so that the ratio is valid on a machine whose
speed drifts. Target: 0.97.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from benchmarks.bare_loop import BareLoop
from kd_app.callbacks.curve_log import CurveLogger
from kd_app.callbacks.progress import Progress
from kd_app.callbacks.resumable_checkpoint import ResumableCheckpoint
from kd_app.config.compose import compose_config
from kd_app.data.module import ImageData
from kd_app.models.create import create
from kd_app.reporting.console import Console
from kd_app.run.role_jobs import build_student_job
from kd_app.run.workspace import Workspace
from kd_app.specs.spec import RunSpec, build_spec
from kd_app.stages import Stages
from kd_app.training.cpu_convolutions import correct_convolutions, prepare_cpu
from kd_app.training.fit import build
from kd_app.training.job import JobTeacher, TrainingJob
from kd_app.training.module import Distillation
from kd_app.training.trainer import silence_lightning

TARGET = 0.97
PAIRS = (("resnet18", "resnet10t"), ("wrn_16_2", "resnet8"))


class Clock(pl.Callback):
    """Measure the time from the first step after the warm-up to the end of the last
    step, by `read_time`.
    """

    def __init__(self, skip: int, read_time: Callable[[], float]) -> None:
        self.skip = skip
        self.read_time = read_time
        self.seconds = 0.0
        self._start = 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.skip:
            self._start = self.read_time()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if batch_idx + 1 == trainer.num_training_batches:
            self.seconds = self.read_time() - self._start


def read_clock() -> float:
    """Return the time in seconds at which all work of the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def build_workspace(teacher: str, student: str, folder: Path, steps: int, *more: str) -> Workspace:
    """Return the workspace of a pair at 28x28, batch 128, on noise; more: overrides."""
    overrides = [
        "data=digits",
        "data.source._target_=benchmarks.noise.Noise",
        "+data.source.images=12800",
        "+data.source.side=28",
        "data.view.padding=2",
        "data.view.flip=true",
        "data.batch_size=128",
        f"teacher.name={teacher}",
        f"student.name={student}",
        "logger=[csv]",
        "trainer.max_epochs=1",
    ]
    overrides += [f"trainer.limit_train_batches={steps}", "trainer.limit_val_batches=1", *more]
    spec: RunSpec = build_spec(compose_config("distill", overrides))
    workspace = Workspace(spec, Stages(folder), Console(silent=True), tracker=None)
    workspace.prepare_data()
    return workspace


def build_live_job(workspace: Workspace) -> TrainingJob:
    """Return the job of the student with the untrained teacher beside it."""
    assert workspace.spec.teacher is not None
    teacher = workspace.load_model(workspace.spec.teacher, seed=0)
    source = JobTeacher(teacher.spec, teacher.loaded)
    return replace(build_student_job(workspace, None), teacher=source)


def build_loop(
    workspace: Workspace,
    job: TrainingJob,
    folder: Path,
    skip: int,
    *,
    read_time: Callable[[], float] = read_clock,
    more: Sequence[pl.Callback] = (),
) -> Callable[[], float]:
    """Return a function that trains `job` with the main loop, its callbacks and curves,
    and returns the seconds of the steps after the first `skip`, by the clock
    `read_time`. more: callbacks.
    """
    data = workspace.data
    assert isinstance(data, ImageData)

    def run() -> float:
        created = create(job.model, job.input, job.count_outputs(data), seed=0)
        data.bind(job.input, order_seed=job.recipe.seed)
        module: Distillation = build(job, created, data, workspace.spec.trainer)
        clock = Clock(skip, read_time)
        callbacks = [
            Progress("student", Console(silent=True)),
            ResumableCheckpoint(folder, minutes=5, selection=job.task.selection),
            clock,
            *more,
        ]
        trainer = workspace.spec.trainer.make(
            max_epochs=1, folder=folder, callbacks=callbacks, loggers=[CurveLogger(folder)]
        )
        settings = workspace.spec.trainer
        with silence_lightning(), prepare_cpu(settings, module.student, module.loss):
            trainer.fit(module, datamodule=data)
        return clock.seconds

    return run


def compare(teacher: str, student: str, *, steps: int, rounds: int, skip: int = 5) -> list[float]:
    """Return the images per second of the training loop relative to the bare loop, one
    ratio per round.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace = build_workspace(teacher, student, folder, steps + skip)
        job = build_live_job(workspace)
        assert job.teacher is not None
        loop = build_loop(workspace, job, folder, skip)
        input_spec = job.input
        data = workspace.data
        assert isinstance(data, ImageData)
        images = data.index.source.store()
        assert images is not None
        bare = BareLoop(
            create(job.model, input_spec, 10, seed=0).model,
            job.teacher.created.model,
            images,
            torch.from_numpy(data.index.listing.target),
            128,
            workspace.spec.trainer.precision,
            input_spec.mean[0],
            input_spec.std[0],
        )
        ratios = []
        for number in range(rounds + 1):
            with correct_convolutions(workspace.spec.trainer, bare.student):
                bare.run(skip)
                start = time.perf_counter()
                bare.run(steps)
                bare_seconds = time.perf_counter() - start
            loop_seconds = loop()
            # The first round is a warm-up.
            if number:
                ratios.append(bare_seconds / loop_seconds)
                print(
                    f"  round {number}: bare {128 * steps / bare_seconds:,.0f} images/s, kd_app"
                    f" {128 * steps / loop_seconds:,.0f}, ratio {ratios[-1]:.3f}",
                    flush=True,
                )
        return ratios


def main() -> int:
    """Print one line per pair; exit code 1 if a median is below the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    missed = False
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for teacher, student in PAIRS:
        ratios = compare(teacher, student, steps=args.steps, rounds=args.rounds)
        median = statistics.median(ratios)
        missed |= median < TARGET
        spread = f"min {min(ratios):.3f}, max {max(ratios):.3f}; target {TARGET}"
        print(
            f"{teacher} -> {student}, 28x28, batch 128: {median:.3f} of the bare loop ({spread})",
            flush=True,
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
