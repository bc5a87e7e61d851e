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
from pathlib import Path

import timm
import torch

from benchmarks.training_loop import build_live_job, build_loop, build_workspace
from kd_app.config import InputSpec
from kd_app.models.save import save_model
from kd_app.run.role_jobs import build_control_job, build_student_job
from kd_app.run.workspace import Workspace
from kd_app.training.job import TrainingJob

TARGET = 0.97
ALONE, LIVE = "alone", "live"
PAIR = ("wrn_16_2", "resnet8")
BATCH = 128
CASES: Mapping[str, Sequence[str]] = {
    "exact": ("teacher.cache=exact",),
    "int8": ("teacher.cache=int8",),
    "embedding": ("teacher.cache=embedding",),
    "without labels": ("task=embedding", "loss=[embedding_cosine]", "controls=[]"),
}
"""Name -> overrides. The last one learns the teacher's embedding behind a projector."""
PIXELS = InputSpec(1, 28, 28, (0.5,), (0.5,))


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
        net = timm.create_model(PAIR[0], num_classes=10, in_chans=PIXELS.channels)
        classes = tuple("0123456789")
        save_model(net, folder / "teacher", pixels=PIXELS, classes=classes, license="none")
        words = (
            *("data.views=1", "teacher.outputs=cached"),
            f"teacher.checkpoint={folder / 'teacher'}",
        )

        def build_case(workspace: Workspace, job: TrainingJob) -> Callable[[], float]:
            return build_loop(workspace, job, folder, skip, read_time=read_time)

        loops = {}
        for name in cases:
            workspace = build_workspace(*PAIR, folder, steps + skip, *words, *CASES[name])
            teacher = workspace.load_pretrained_teacher()
            loops[name] = build_case(workspace, build_student_job(workspace, teacher))
        # the data, the validation and the loss of the student are those of the cases
        workspace = build_workspace(*PAIR, folder, steps + skip, *words)
        teacher = workspace.load_pretrained_teacher()
        assert teacher is not None
        loops[LIVE] = build_case(workspace, build_live_job(workspace))
        alone = build_control_job(workspace, "labels_only", teacher)
        loops[ALONE] = build_case(workspace, alone)
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
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
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
