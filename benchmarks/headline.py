"""What does distilling gain, on the shipped files? ``python -m benchmarks.headline``
(``make headline``)

Data: Fashion-MNIST. The teacher, a wrn_28_2, is trained once and cached. So is a
smaller net distilled from the teacher, which shows how much of the cost a more modest
choice would save. Then the student (a resnet8 with a strided stem) is distilled with
all labels and with a tenth of the labels, each compared with the same net trained on
these labels alone. Teacher and student are exported and timed in turns in one process.
Every step is a cached stage of kd-distill or kd-export.

The last line has three numbers of the student's file compared with the teacher's files:
retention (of the accuracy of the teacher in torch, on test), and by how many times
latency and cost are lower than those of the teacher's best file. Targets: 97 %, 10 and
50; the exit code is 1 if one is missed.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kd_app.config import RequestError
from kd_app.reporting.exports import Exports, File, RatioEstimate, read_exports
from kd_app.reporting.results import Results, read

RETENTION, FASTER, CHEAPER = 0.97, 10.0, 50.0
ALONE = ["teacher=none", "loss=[cross_entropy]", "controls=[]", "logger=[csv]"]
DATA = ["data=fashion_mnist"]
TEACHER = ["student.name=wrn_28_2", "trainer.max_epochs=6"]
DISTILLED = [
    "loss=[cross_entropy,soft_target]",
    "loss.soft_target.temperature=4",
    "data.views=2",
    "teacher.outputs=cached",
    "logger=[csv]",
]
STUDENT = [
    "student.name=resnet8",
    "student.kwargs.stem_kernel=5",
    "student.kwargs.stem_stride=2",
    "student.kwargs.strides=[2,2,2]",
    "student.kwargs.widths=[16,16,40,80]",
]
EPOCHS = "trainer.max_epochs=20"
MODEST = ["student.name=resnet14", "trainer.max_epochs=6", "controls=[]"]
# after two batches a teacher is at chance, which is refused otherwise
SMOKE = ["data=digits", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "checks=warn"]
FORMATS = "formats=[onnx,onnx_int8,executorch,executorch_int8]"


@dataclass(frozen=True)
class Headline:
    """Retention of the teacher's accuracy, and by how many times latency and cost are
    lower.
    """

    retention: RatioEstimate
    faster: RatioEstimate
    cheaper: RatioEstimate

    @property
    def is_reached(self) -> bool:
        """Whether all three values reach their targets."""
        return (
            self.retention.value >= RETENTION
            and self.faster.value >= FASTER
            and self.cheaper.value >= CHEAPER
        )

    def __str__(self) -> str:
        kept = self.retention
        return (
            f"{100 * kept.value:.1f} % of the teacher's accuracy ({100 * kept.low:.1f} to"
            f" {100 * kept.high:.1f}), latency lower by {self.faster}, cost lower by {self.cheaper}"
        )


def run_command(command: str, overrides: Sequence[str]) -> None:
    """Run a command of kd_app like a user, with its output on the console."""
    print(f"\n$ kd-{command} {' '.join(overrides)}", flush=True)
    subprocess.run([sys.executable, "-m", f"kd_app.commands.{command}", *overrides], check=True)


def train_and_export(folder: Path, stages: Path, *, smoke: bool) -> None:
    """Train and export all models. Finished runs are skipped."""
    data, at = SMOKE if smoke else DATA, f"stages={stages}"

    def distill(name: str, *overrides: str) -> None:
        if smoke:
            overrides = tuple(x for x in overrides if not x.startswith("trainer.max_epochs"))
        run_command("distill", [*data, *overrides, at, f"out={folder / name}"])

    distill("teacher", *ALONE, *TEACHER)
    teacher = f"teacher.checkpoint={folder / 'teacher'}"
    distill("student", teacher, *DISTILLED, *STUDENT, EPOCHS)
    distill("tenth", teacher, *DISTILLED, *STUDENT, EPOCHS, "data.label_fraction=0.1")
    distill("modest", teacher, *DISTILLED, *MODEST)
    quick = ["benchmark.seconds=0.2", "benchmark.rounds=6"] if smoke else []
    formats = "formats=[onnx]" if smoke else FORMATS
    run_command("export", [f"run={folder / 'student'}", "role=both", formats, at, *quick])
    # Exported once, because the timings of this file do not change.
    if read_exports(folder / "modest") is None:
        run_command("export", [f"run={folder / 'modest'}", "role=student", formats, at, *quick])


def measure_headline(folder: Path) -> Headline:
    """Compute the headline from the runs of `train_and_export`."""
    exports = load_exports(folder / "student")
    shipped = find_shipped_file(exports)
    assert shipped.test is not None
    assert shipped.test.retention is not None
    retention = RatioEstimate(
        value=shipped.test.retention,
        low=shipped.test.retention_low or 0.0,
        high=shipped.test.retention_high or 0.0,
    )
    return Headline(
        retention,
        _find_smallest_ratio(shipped.times_faster, exports),
        _find_smallest_ratio(shipped.times_cheaper, exports),
    )


def _find_smallest_ratio(ratios: dict[str, RatioEstimate], exports: Exports) -> RatioEstimate:
    """Return the smallest ratio, that is the comparison with the teacher's best
    file.
    """
    return min(
        (ratios[name] for name, file in exports.files.items() if file.role == "teacher"),
        key=lambda ratio: ratio.value,
    )


def load_exports(run: Path) -> Exports:
    """Load the exports of a run. Raises `RequestError` if there are none."""
    exports = read_exports(run)
    if exports is None:
        raise RequestError(f"The run {str(run)!r} has no export. Run kd-export run={run} first.")
    return exports


def find_shipped_file(exports: Exports) -> File:
    """Return the exported file chosen for shipping."""
    assert exports.ship is not None
    return exports.files[exports.ship]


def describe_context(folder: Path) -> list[str]:
    """Return sentences that put the headline into context."""
    student, tenth = (read(folder / name / "results.json") for name in ("student", "tenth"))
    all_files = {name: load_exports(folder / name) for name in ("student", "modest")}
    return [
        _describe_gain("all labels", student),
        _describe_gain("a tenth of the labels", tenth),
        _describe_cheapest_file(all_files),
    ]


def _describe_gain(labels: str, results: Results) -> str:
    assert results.test is not None
    assert results.test.pair is not None
    assert results.test.labels_only is not None
    pair, alone = results.test.pair, results.test.labels_only
    assert pair.gain is not None
    assert alone.top1 is not None
    assert results.test.student.top1 is not None
    return (
        f"With {labels}: distilled {100 * results.test.student.top1:.2f} %, the same net trained on"
        f" these labels alone {100 * alone.top1:.2f} %; gain of distilling {100 * pair.gain:+.2f}"
        f" points ({100 * (pair.gain_low or 0):+.2f} to {100 * (pair.gain_high or 0):+.2f})."
    )


def _describe_cheapest_file(exports: dict[str, Exports]) -> str:
    """Compare the student with the cheapest file that keeps the margin. All files were
    timed in turns with the teacher in torch, so the costs are comparable.
    """
    kept = [
        (
            file.times_cheaper["teacher"],
            f"{file.role if run == 'student' else run}'s {name}",
            file.test.verdict,
        )
        for run, run_exports in exports.items()
        for name, file in run_exports.files.items()
        if file.test and file.test.verdict and file.test.verdict.outcome == "kept"
    ]
    if not kept:
        return "No file is shown to be as good as the teacher."
    times, name, verdict = max(kept, key=lambda each: each[0].value)
    ours = find_shipped_file(exports["student"]).times_cheaper["teacher"]
    return (
        f"The cheapest file as good as the teacher (within {100 * verdict.margin:g} point;"
        f" {100 * verdict.difference:+.2f} points on test) is the {name}. The student's file costs"
        f" {ours.value / times.value:.1f} times less."
    )


def main() -> int:
    """Print the runs, their context and the headline; exit code 1 if a target is
    missed.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/headline"))
    parser.add_argument("--stages", type=Path, default=Path("runs/.stages"))
    parser.add_argument(
        "--smoke", action="store_true", help="only check that it runs: digits, two batches per run"
    )
    args = parser.parse_args()
    start = time.perf_counter()
    train_and_export(args.out, args.stages, smoke=args.smoke)
    print(f"\n{(time.perf_counter() - start) / 60:.1f} minutes for runs that were not cached")
    print("\n".join(describe_context(args.out)))
    result = measure_headline(args.out)
    print(
        f"Targets: {100 * RETENTION:g} %, {FASTER:g}x, {CHEAPER:g}x:"
        f" {'reached' if result.is_reached else 'missed'}"
    )
    print(result, flush=True)
    return int(not result.is_reached)


if __name__ == "__main__":
    sys.exit(main())
