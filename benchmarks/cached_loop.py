"""How fast does a student train with cached teacher outputs, compared with the student
alone and with the running teacher? ``python -m benchmarks.cached_loop``

The trainings run in one process and take turns, so that the ratios are valid on a
machine whose speed drifts. On a machine that other work shares, ``--processor`` counts
the seconds of this process on the processors in place of those on the wall. Target:
0.97 of the student alone, which trains on the labels.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.training_loop import build_loop, build_workspace
from kd_app.models.save import save_model
from kd_app.run.role_jobs import build_control_job, build_student_job
from kd_app.run.run_model import RunModel
from kd_app.run.workspace import Workspace
from kd_app.training.job import JobTeacher, TrainingJob

TARGET = 0.97
ALONE, LIVE = "alone", "live"
PAIR = ("wrn_16_2", "resnet8")
BATCH = 128
CASES: Mapping[str, Sequence[str]] = {
    "exact": ("teacher.cache=exact",),
    "int8": ("teacher.cache=int8",),
    "embedding": ("teacher.cache=embedding",),
}
"""Name -> overrides."""
EMBEDDING = ("task=embedding", "loss=[embedding_cosine]", "controls=[]")
LABEL_FREE = "without labels"
"""The student learns the teacher's embedding behind a projector."""


def compare(
    *,
    steps: int,
    rounds: int,
    cases: Sequence[str],
    skip: int = 5,
    read_time: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return, for the running teacher and for each case of the cache, the images per
    second relative to the student alone, one ratio per round.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        weights = folder / "teacher"

        def build(name: str) -> tuple[Workspace, RunModel]:
            own = CASES.get(name, (*EMBEDDING, f"teacher.checkpoint={weights}"))
            words = ("data.views=1", "teacher.outputs=cached", *own)
            workspace = build_workspace(*PAIR, folder, steps + skip, *words)
            assert workspace.spec.teacher is not None
            teacher = workspace.load_pretrained_teacher()
            return workspace, teacher or workspace.load_model(workspace.spec.teacher, seed=0)

        def build_case(workspace: Workspace, job: TrainingJob) -> Callable[[], float]:
            return build_loop(workspace, job, folder, skip, read_time=read_time)

        workspace, teacher = build("exact")
        loaded, names = teacher.loaded, workspace.data.classes
        save_model(loaded.model, weights, pixels=loaded.pixels, classes=names, license="none")
        # the data, the validation and the loss of the student are those of the cases
        live = build_student_job(workspace, None)
        live = replace(live, teacher=JobTeacher(teacher.spec, teacher.loaded))
        alone = build_control_job(workspace, "labels_only", teacher)
        loops = {LIVE: build_case(workspace, live), ALONE: build_case(workspace, alone)}
        for name in cases:
            workspace, teacher = build(name)
            loops[name] = build_case(workspace, build_student_job(workspace, teacher))
        ratios: dict[str, list[float]] = {name: [] for name in loops if name != ALONE}
        for number in range(rounds + 1):
            seconds = {name: loop() for name, loop in loops.items()}
            if not number:  # the first round is a warm-up
                continue
            speeds = {name: BATCH * steps / value for name, value in seconds.items()}
            for name, each in ratios.items():
                each.append(speeds[name] / speeds[ALONE])
            listed = ", ".join(f"{name} {speed:,.0f}" for name, speed in speeds.items())
            print(f"  round {number}: {listed} images/s", flush=True)
        return ratios


def main() -> int:
    """Print a line per source; exit code 1 if a cache misses the target."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=9)
    cases = [*CASES, LABEL_FREE]
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases)
    parser.add_argument("--processor", action="store_true")
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    ratios = compare(
        steps=arguments.steps,
        rounds=arguments.rounds,
        cases=arguments.cases,
        read_time=time.process_time if arguments.processor else time.perf_counter,
    )
    missed = False
    for name, each in ratios.items():
        median = statistics.median(each)
        missed |= name != LIVE and median < TARGET
        spread = f"min {min(each):.3f}, max {max(each):.3f}"
        print(
            f"{PAIR[0]} -> {PAIR[1]}, 28x28, {name}: {median:.3f} of the student alone ({spread})"
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
