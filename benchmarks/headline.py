"""What is distilling worth, on the files that ship? ``python -m benchmarks.headline``
(``make headline``)

Fashion-MNIST. The teacher, a wrn_28_2, is trained once and kept, as is a smaller net
taught by it, for the question how much of the bill a more modest choice would have
saved. Then: the student (a resnet8 with a strided stem) with all labels and with a
tenth of them, each beside the same net trained on those labels alone; teacher and
student as files, timed in turns in one process. Everything is a stage of kd-distill and
kd-export: what is there is found.

The last line holds three figures of the student's file beside the teacher's files:
accuracy kept (of the teacher in torch, on test), and by how many times latency and cost
are lower than those of the teacher's best file. Targets: 97 %, 10 and 50; exit code 1
when one is missed.
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
TAUGHT = [
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
SMOKE = ["data=digits", "trainer.max_epochs=1", "trainer.limit_train_batches=2"]
FORMATS = "formats=[onnx,onnx_int8,executorch,executorch_int8]"


@dataclass(frozen=True)
class Figures:
    """The headline: the share of the teacher's accuracy, and by how many times latency
    and cost are lower.
    """

    retention: RatioEstimate
    faster: RatioEstimate
    cheaper: RatioEstimate

    @property
    def reached(self) -> bool:
        """All three targets, by their values."""
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


def said(command: str, words: Sequence[str]) -> None:
    """Run a command of kd_app as a user would; its output goes on."""
    print(f"\n$ kd-{command} {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", f"kd_app.commands.{command}", *words], check=True)


def make(folder: Path, stages: Path, *, smoke: bool) -> None:
    """Train and export everything, or find it."""
    data, at = SMOKE if smoke else DATA, f"stages={stages}"

    def distill(name: str, *words: str) -> None:
        kept = [word for word in words if not (smoke and word.startswith("trainer.max_epochs"))]
        said("distill", [*data, *kept, at, f"out={folder / name}"])

    distill("teacher", *ALONE, *TEACHER)
    teacher = f"teacher.checkpoint={folder / 'teacher'}"
    distill("student", teacher, *TAUGHT, *STUDENT, EPOCHS)
    distill("tenth", teacher, *TAUGHT, *STUDENT, EPOCHS, "data.label_fraction=0.1")
    distill("modest", teacher, *TAUGHT, *MODEST)
    quick = ["benchmark.seconds=0.2", "benchmark.rounds=6"] if smoke else []
    formats = "formats=[onnx]" if smoke else FORMATS
    said("export", [f"run={folder / 'student'}", "role=both", formats, at, *quick])
    if read_exports(folder / "modest") is None:  # it is kept with its figures, as the teacher is
        said("export", [f"run={folder / 'modest'}", "role=student", formats, at, *quick])


def headline(folder: Path) -> Figures:
    """The figures of what `make` left."""
    exports = exported(folder / "student")
    shipped = ship(exports)
    assert shipped.test is not None
    assert shipped.test.retention is not None
    kept = RatioEstimate(
        value=shipped.test.retention,
        low=shipped.test.retention_low or 0.0,
        high=shipped.test.retention_high or 0.0,
    )
    return Figures(
        kept, _least(shipped.times_faster, exports), _least(shipped.times_cheaper, exports)
    )


def _least(ratios: dict[str, RatioEstimate], exports: Exports) -> RatioEstimate:
    """Beside the teacher's best file: the one beside which the ratio is least."""
    return min(
        (ratios[name] for name, file in exports.files.items() if file.role == "teacher"),
        key=lambda ratio: ratio.value,
    )


def exported(run: Path) -> Exports:
    """What a run was exported to."""
    found = read_exports(run)
    if found is None:
        raise RequestError(f"The run {str(run)!r} has no export. Make it: kd-export run={run}.")
    return found


def ship(exports: Exports) -> File:
    """The file that was chosen."""
    assert exports.ship is not None
    return exports.files[exports.ship]


def honest(folder: Path) -> list[str]:
    """What keeps the headline honest."""
    student, tenth = (read(folder / name / "results.json") for name in ("student", "tenth"))
    all_files = {name: exported(folder / name) for name in ("student", "modest")}
    return [
        _worth("all labels", student),
        _worth("a tenth of the labels", tenth),
        _as_good(all_files),
    ]


def _worth(what: str, results: Results) -> str:
    assert results.test is not None
    assert results.test.pair is not None
    assert results.test.labels_only is not None
    pair, alone = results.test.pair, results.test.labels_only
    assert pair.gain is not None
    assert alone.top1 is not None
    assert results.test.student.top1 is not None
    return (
        f"With {what}: distilled {100 * results.test.student.top1:.2f} %, the same net on those"
        f" labels alone {100 * alone.top1:.2f} %: distilling was worth {100 * pair.gain:+.2f}"
        f" points ({100 * (pair.gain_low or 0):+.2f} to {100 * (pair.gain_high or 0):+.2f})."
    )


def _as_good(exports: dict[str, Exports]) -> str:
    """The student beside the cheapest file that keeps the margin. All were timed in
    turns with the teacher in torch, so by that the costs compare.
    """
    kept = [
        (
            file.times_cheaper["teacher"],
            f"{file.role if run == 'student' else run}'s {name}",
            file.test.verdict,
        )
        for run, found in exports.items()
        for name, file in found.files.items()
        if file.test and file.test.verdict and file.test.verdict.outcome == "kept"
    ]
    if not kept:
        return "No file is shown to be as good as the teacher."
    times, name, verdict = max(kept, key=lambda found: found[0].value)
    ours = ship(exports["student"]).times_cheaper["teacher"]
    return (
        f"The cheapest file that is as good as the teacher (within {100 * verdict.margin:g} point;"
        f" {100 * verdict.difference:+.2f} points on test) is the {name}: the student's costs"
        f" {ours.value / times.value:.1f} times less."
    )


def main() -> int:
    """Print what was made, the figures that keep it honest, and the headline; exit code
    1 where a target is missed.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/headline"))
    parser.add_argument("--stages", type=Path, default=Path("runs/.stages"))
    parser.add_argument(
        "--smoke", action="store_true", help="digits, two batches each: does it run"
    )
    asked = parser.parse_args()
    start = time.perf_counter()
    make(asked.out, asked.stages, smoke=asked.smoke)
    print(f"\n{(time.perf_counter() - start) / 60:.1f} minutes for what was not there yet")
    print("\n".join(honest(asked.out)))
    found = headline(asked.out)
    print(
        f"Targets: {100 * RETENTION:g} %, {FASTER:g}x, {CHEAPER:g}x:"
        f" {'reached' if found.reached else 'missed'}"
    )
    print(found, flush=True)
    return int(not found.reached)


if __name__ == "__main__":
    sys.exit(main())
