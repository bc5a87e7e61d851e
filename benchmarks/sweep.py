"""What does a sweep cost beside the trainings in it? ``python -m benchmarks.sweep``

A sweep of 12 trials (12 students of one teacher, through kd-distill, with everything
that a trial measures and writes) beside the same 12 trainings, one after the other in
one process, with nothing else. Both are commands of their own and begin with nothing
but the teacher. Target: 1.1.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TARGET = 1.1


def words(teacher: Path, stages: Path, epochs: int) -> list[str]:
    """The main job on digits with a teacher that is there."""
    return [
        "data=digits",
        f"teacher.checkpoint={teacher}",
        "controls=[]",
        "logger=[csv]",
        f"stages={stages}",
        f"trainer.max_epochs={epochs}",
    ]


def make_teacher(folder: Path) -> None:
    """A wrn_16_2 for digits as a model folder. How well it knows them does not matter
    here.
    """
    from kd_app.config import InputSpec
    from kd_app.models.create import create, resolve_input
    from kd_app.models.save import save_model
    from kd_app.models.spec import ImageStats, ModelSpec

    request = ModelSpec(
        role="teacher",
        name="wrn_16_2",
        pretrained=False,
        checkpoint=None,
        kwargs={},
        image_size=None,
        factory=None,
    )
    pixels: InputSpec = resolve_input(request, ImageStats(1, 8, (0.3,), (0.4,)))
    created = create(request, pixels, 10, seed=0)
    save_model(
        created.model,
        folder,
        pixels=pixels,
        classes=[str(digit) for digit in range(10)],
        license="none",
    )


def train(said: Sequence[str], trials: int) -> None:
    """The students alone."""
    from kd_app.config.compose import compose_config
    from kd_app.reporting.console import Console
    from kd_app.run.role_jobs import build_student_job
    from kd_app.run.spec import build_spec
    from kd_app.run.train import train as train_job
    from kd_app.run.workspace import Workspace
    from kd_app.stages import Stages
    from kd_app.tracking import Tracker

    for seed in range(trials):
        made = build_spec(compose_config("distill", [*said, f"seed={seed}"]))
        console = Console(silent=True)
        tracker = Tracker(
            {},
            out=Path(made.config["stages"]),
            name="alone",
            group="alone",
            tags=[],
            config={},
            say=console.print,
        )
        shop = Workspace(made, Stages(Path(made.config["stages"])), console, tracker)
        shop.prepare_data()
        assert made.teacher is not None
        job = build_student_job(shop, shop.load_model(made.teacher, seed=0))
        train_job(shop, job, listener=tracker)


def seconds(command: Sequence[str]) -> tuple[float, float]:
    """Wall time, and time on processors, of a command."""
    start, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return (
        time.perf_counter() - start,
        after.children_user + after.children_system - before.children_user - before.children_system,
    )


def compare(trials: int, epochs: int) -> tuple[float, float]:
    """The sweep's cost over the trainings': of wall time, and of time on processors,
    which other work on the machine does not change.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_teacher(folder / "teacher")
        plain = [sys.executable, "-m", "benchmarks.sweep", "--trials", str(trials), "--only"]
        alone = seconds([*plain, *words(folder / "teacher", folder / "alone", epochs)])
        sweep = [
            f"seed={','.join(map(str, range(trials)))}",
            f"out={folder / 'sweep'}",
            *words(folder / "teacher", folder / "stages", epochs),
        ]
        together = seconds([sys.executable, "-m", "kd_app.commands.distill", "-m", *sweep])
        print(
            f"{trials} trainings of {epochs} epochs: {alone[0]:.1f} s ({alone[1]:.1f} s of"
            " processors)"
        )
        print(f"a sweep of them: {together[0]:.1f} s ({together[1]:.1f} s of processors)")
        return together[0] / alone[0], together[1] / alone[1]


def main() -> int:
    """Print the ratio; exit code 1 above the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--only", nargs="*", help="do the trainings that these words ask for")
    asked = parser.parse_args()
    if asked.only is not None:
        train(asked.only, asked.trials)
        return 0
    wall, processors = compare(asked.trials, asked.epochs)
    print(
        f"A sweep costs {wall:.3f} of its trainings (of time on processors {processors:.3f});"
        f" target {TARGET}",
        flush=True,
    )
    return int(wall > TARGET)


if __name__ == "__main__":
    sys.exit(main())
