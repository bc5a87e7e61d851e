"""How much of the gap to its teacher does a small student close without labels?

``python -m benchmarks.label_free_students <set> <folder> --teacher <model folder>
--students resnet10t --seeds 0,1,2`` trains a student from random weights with
``task=embedding`` on a folder with classes, which only judge, exports it, and adds a
line to docs/label-free-students.csv; lines that are there are not repeated. ``--table``
prints the lines as a table in Markdown. Of CIFAR-10, a copy of 4,440 images to train on
and to choose by, and 2,000 to test on, is made beside the runs.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

from benchmarks.headline import run_command
from benchmarks.image_sets import Size, copy_cifar
from benchmarks.lines import read_lines, round_value, write_lines
from kd_app.reporting.exports import read_exports
from kd_app.reporting.measurement_results import Estimate
from kd_app.reporting.results import read
from kd_app.run_files import RESULTS

FILE: Final = Path(__file__).parents[1] / "docs" / "label-free-students.csv"
SETS: Final = ("cifar10", "flowers")
METRICS: Final[Mapping[str, str]] = {
    "purity": "purity",
    "knn_top1": "k-NN",
    "probe_top1": "linear probe",
    "overlap": "teacher's neighbors",
}
"""Name of a metric -> its title."""
SETTINGS: Final = (
    "data=folder",
    "task=embedding",
    "teacher.image_size=96",
    "data.image_size=64",
    "student.pretrained=false",
    "data.views=2",
    "data.num_workers=0",
    "data.batch_size=64",
    "teacher.outputs=cached",
    "trainer=cpu",
    "trainer.max_epochs=16",
    "optimizer.lr=0.003",
    "scheduler=one_cycle",
    "loss=[embedding_cosine]",
    "loss.embedding_cosine.center=true",
    "logger=[csv]",
)
FORMATS: Final = "formats=[onnx,onnx_int8]"
_CIFAR: Final = Size(train=4_440, test=2_000)


@dataclass(frozen=True)
class Line:
    """One run, measured on the test images: the share of the gap between the untouched
    student and the teacher that is closed, by metric, with its 95 % interval over the
    queries; purity and overlap of the models; and the int8 file's overlap with the
    teacher's neighbors as a share of the float file's.
    """

    set: str
    student: str
    seed: int
    queries: int
    untouched_purity: float
    student_purity: float
    teacher_purity: float
    untouched_overlap: float
    student_overlap: float
    purity_gap: float
    purity_gap_low: float
    purity_gap_high: float
    knn_top1_gap: float
    knn_top1_gap_low: float
    knn_top1_gap_high: float
    probe_top1_gap: float
    probe_top1_gap_low: float
    probe_top1_gap_high: float
    overlap_gap: float
    overlap_gap_low: float
    overlap_gap_high: float
    int8_overlap_kept: float


def main() -> None:
    """Run the students that have no line yet, or print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("set", nargs="?", choices=SETS)
    parser.add_argument("images", nargs="?", type=Path, help="has folders of classes")
    parser.add_argument("--teacher", type=Path, help="a model folder of timm")
    parser.add_argument("--folder", type=Path, default=Path("runs/label-free-students"))
    parser.add_argument("--students", default="resnet10t", help="names of timm, by comma")
    parser.add_argument("--seeds", default="0", help="by comma")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        sys.stdout.write(f"{render_table(read_lines(Line, FILE))}\n")
        return
    if arguments.images is None or arguments.teacher is None:
        parser.error("name a set, its folder and --teacher, or use --table")
    root = arguments.images
    if arguments.set == "cifar10":
        root = copy_cifar(arguments.folder, _CIFAR, root)
    for seed in map(int, arguments.seeds.split(",")):
        for student in arguments.students.split(","):
            key = (arguments.set, student, seed)
            if any((each.set, each.student, each.seed) == key for each in read_lines(Line, FILE)):
                continue
            out = arguments.folder / "-".join(map(str, key))
            settings = (
                f"data.root={root}",
                f"teacher.checkpoint={arguments.teacher}",
                f"student.name={student}",
                f"seed={seed}",
                f"out={out}",
                f"stages={arguments.folder / 'stages'}",
            )
            run_command("distill", [*SETTINGS, *settings])
            run_command("export", [f"run={out}", FORMATS])
            lines = [*read_lines(Line, FILE), parse_run(out, *key)]
            write_lines(sorted(lines, key=lambda each: (each.set, each.student, each.seed)), FILE)


def parse_run(out: Path, set: str, student: str, seed: int) -> Line:
    """The line of a finished run with exported files."""
    record = read(out / RESULTS).embedding
    last = record.last if record else None
    exports = read_exports(out)
    assert last is not None
    assert exports is not None
    split = last[1]
    models = {role: split.models[role] for role in ("untouched", "student", "teacher")}
    values = {}
    for metric in METRICS:
        gap = split.gap_closed[metric]
        values[f"{metric}_gap"] = round_value(gap.value)
        values[f"{metric}_gap_low"], values[f"{metric}_gap_high"] = map(
            round_value, (gap.low, gap.high)
        )
    for role, model in models.items():
        purity = model.purity or Estimate(value=None)
        values[f"{role}_purity"] = round_value(purity.value)
        if role != "teacher":
            values[f"{role}_overlap"] = round_value(model.overlap.value)
    overlaps = {
        each.format: each.test.overlap
        for each in exports.files.values()
        if each.test is not None and each.test.overlap is not None
    }
    return Line(
        set=set,
        student=student,
        seed=seed,
        queries=split.num_queries,
        int8_overlap_kept=round_value(overlaps["onnx_int8"] / overlaps["onnx"]),
        **values,
    )


def render_table(lines: Sequence[Line]) -> str:
    """A table in Markdown: by set and student the means over the seeds, in %, with the
    outer ends of the seeds' intervals.
    """
    gaps = tuple(f"gap closed: {title}" for title in METRICS.values())
    purities = ("purity untouched", "student", "teacher")
    heads = ("set", "student", "seeds", *purities, *gaps, "int8 keeps of the overlap")
    rows = [heads, ("---",) * len(heads)]
    for set_name, student in dict.fromkeys((each.set, each.student) for each in lines):
        own = [each for each in lines if (each.set, each.student) == (set_name, student)]
        cells = [set_name, student, str(len(own))]
        cells += [_average(own, f"{role}_purity") for role in ("untouched", "student", "teacher")]
        cells += [_format_gap(own, metric) for metric in METRICS]
        rows.append((*cells, _average(own, "int8_overlap_kept")))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _average(lines: Sequence[Line], name: str) -> str:
    return f"{100 * fmean(getattr(each, name) for each in lines):.1f}"


def _format_gap(lines: Sequence[Line], metric: str) -> str:
    low = 100 * min(getattr(each, f"{metric}_gap_low") for each in lines)
    high = 100 * max(getattr(each, f"{metric}_gap_high") for each in lines)
    return f"{_average(lines, f'{metric}_gap')} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()
