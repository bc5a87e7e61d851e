"""How much does a sweep add to the cost of its trainings? ``python -m
benchmarks.sweep``

Compares a sweep of 12 trials (12 students of one teacher, through kd-distill, with all
measurements and files of a trial) with the same 12 trainings, one after the other in
one process, without anything else. Both run as commands of their own and start with
nothing but the teacher. Target: 1.05. ``--commands`` also compares the sweep with 12
calls of kd-distill, which it replaces.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

TARGET = 1.05
DISTILL = [sys.executable, "-m", "kd_app.commands.distill"]
TEACHER_EPOCHS = 4
"""Enough to be far above chance: other teachers are examined by each trial."""


def build_overrides(teacher: Path, stages: Path, epochs: int) -> list[str]:
    """Return the overrides of a distillation on digits with an existing teacher."""
    return [
        "data=digits",
        f"teacher.checkpoint={teacher}",
        "controls=[]",
        "logger=[csv]",
        f"stages={stages}",
        f"trainer.max_epochs={epochs}",
    ]


def train_teacher(folder: Path, epochs: int) -> None:
    """Train a wrn_16_2 on digits as the run ``teacher`` in `folder`."""
    from kd_app.config.compose import compose_config
    from kd_app.jobs.distill import distill
    from kd_app.reporting.console import Console

    settings = [
        "data=digits",
        "teacher=none",
        "loss=[cross_entropy]",
        "controls=[]",
        "logger=[csv]",
        "student.name=wrn_16_2",
        f"trainer.max_epochs={epochs}",
        f"stages={folder / 'stages-of-teacher'}",
        f"out={folder / 'teacher'}",
    ]
    distill(compose_config("distill", settings), console=Console(silent=True))


def train(overrides: Sequence[str], trials: int) -> None:
    """Train only the students."""
    from kd_app.config.compose import compose_config
    from kd_app.reporting.console import Console
    from kd_app.run.role_jobs import build_student_job
    from kd_app.run.train import train as train_job
    from kd_app.run.workspace import Workspace
    from kd_app.specs.spec import build_spec
    from kd_app.stages import Stages
    from kd_app.tracking import Tracker

    for seed in range(trials):
        spec = build_spec(compose_config("distill", [*overrides, f"seed={seed}"]))
        console = Console(silent=True)
        tracker = Tracker(
            {},
            out=Path(spec.config["stages"]),
            name="alone",
            group="alone",
            tags=[],
            config={},
            say=console.print,
        )
        workspace = Workspace(spec, Stages(Path(spec.config["stages"])), console, tracker)
        workspace.prepare_data()
        assert spec.teacher is not None
        job = build_student_job(workspace, workspace.load_model(spec.teacher, seed=0))
        train_job(workspace, job, listener=tracker)


class Cost(NamedTuple):
    """Seconds of a command: on the wall clock, and of the processor, which other work
    on the machine changes less.
    """

    wall: float
    processor: float

    def show(self, what: str, base: "Cost | None" = None) -> None:
        """Print the seconds, and their ratio to those of `base`."""
        line = f"{what}: {self.wall:.1f} s ({self.processor:.1f} s of processor time)"
        if base is not None:
            wall, processor = self.wall / base.wall, self.processor / base.processor
            line += f", {wall:.3f} ({processor:.3f}) times as long"
        print(line, flush=True)


def time_command(command: Sequence[str]) -> Cost:
    """Time a command with all that it starts."""
    start, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return Cost(
        time.perf_counter() - start,
        after.children_user + after.children_system - before.children_user - before.children_system,
    )


def time_commands(trials: int, overrides: Sequence[str], folder: Path) -> Cost:
    """Time a call of kd-distill for each training, one after the other."""
    calls = [
        [*DISTILL, f"seed={seed}", f"out={folder / str(seed)}", *overrides]
        for seed in range(trials)
    ]
    costs = [time_command(call) for call in calls]
    return Cost(sum(each.wall for each in costs), sum(each.processor for each in costs))


def compare(trials: int, epochs: int, *, has_commands: bool) -> float:
    """Print what the sweep and its trainings cost, and return the wall time of the
    sweep relative to its trainings.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_teacher(folder, TEACHER_EPOCHS)
        plain = [sys.executable, "-m", "benchmarks.sweep", "--trials", str(trials), "--only"]
        alone = time_command(
            [*plain, *build_overrides(folder / "teacher", folder / "alone", epochs)]
        )
        alone.show(f"{trials} trainings of {epochs} epochs")
        sweep = [
            f"seed={','.join(map(str, range(trials)))}",
            f"out={folder / 'sweep'}",
            *build_overrides(folder / "teacher", folder / "stages", epochs),
        ]
        together = time_command([*DISTILL, "-m", *sweep])
        together.show("as a sweep", alone)
        if has_commands:
            overrides = build_overrides(folder / "teacher", folder / "stages-of-calls", epochs)
            calls = time_commands(trials, overrides, folder / "calls")
            calls.show(f"as {trials} calls of kd-distill", alone)
            together.show("the sweep beside them", calls)
        return together.wall / alone.wall


def main() -> int:
    """Print the ratio; exit code 1 above the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--commands", action="store_true", help="compare with as many calls, too")
    parser.add_argument("--only", nargs="*", help="only run the trainings, with these overrides")
    args = parser.parse_args()
    if args.only is not None:
        train(args.only, args.trials)
        return 0
    ratio = compare(args.trials, args.epochs, has_commands=args.commands)
    print(f"target: {TARGET} times the time of the trainings", flush=True)
    return int(ratio > TARGET)


if __name__ == "__main__":
    sys.exit(main())
