"""How much of the gap to its teacher does a small student close without labels?

``python -m benchmarks.label_free_students <set> <folder> --teacher <model folder>
--students resnet10t --seeds 0,1,2`` trains a student from random weights, or from those
in the folder ``--start``, with ``task=embedding`` on a folder with classes, which only
judge, exports it, and adds a line to docs/label-free-students.csv; lines that are there
are not repeated. ``--table`` prints the lines as a table in Markdown, ``--curves``
purity on validation after each epoch of the runs in ``--folder``. Of CIFAR-10, a copy
of ``--images`` to train on and to choose by, and of 2,000 to test on, is made beside
the runs.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import pandas as pd

from benchmarks.headline import run_command
from benchmarks.image_sets import Size, copy_cifar
from benchmarks.lines import read_lines, round_value, write_lines
from kd_app.reporting.exports import read_exports
from kd_app.reporting.metrics import Estimate
from kd_app.reporting.results import read
from kd_app.run_files import CURVES, RESULTS

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
    "data.views=2",
    "data.num_workers=0",
    "data.batch_size=64",
    "teacher.outputs=cached",
    "trainer=cpu",
    "scheduler=one_cycle",
    "loss=[embedding_cosine]",
    "loss.embedding_cosine.center=true",
    "logger=[csv]",
)
FORMATS: Final = "formats=[onnx,onnx_int8]"
RANDOM: Final = "random"
_TEST: Final = 2_000


@dataclass(frozen=True)
class Key:
    """What decides a run. teacher: the name of its folder. start: that of the student's
    weights, or `RANDOM`. images: of the copy to train on and to choose by; 0: all.
    pixels: the side of the student's input; that of the teacher's is 96.
    """

    set: str
    teacher: str
    student: str
    start: str
    images: int
    epochs: int
    pixels: int
    seed: int


@dataclass(frozen=True)
class Line(Key):
    """One run, measured on the test images: the share of the gap between the untouched
    student and the teacher that is closed, by metric, with its 95 % interval over the
    queries; purity and overlap of the models; and the int8 file's overlap with the
    teacher's neighbors as a share of the float file's.
    """

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
    parser.add_argument("photos", nargs="?", type=Path, help="has folders of classes")
    parser.add_argument("--teacher", type=Path, help="a model folder of timm")
    parser.add_argument("--folder", type=Path, default=Path("runs/label-free-students"))
    parser.add_argument("--students", default="resnet10t", help="names of timm, by comma")
    parser.add_argument("--start", type=Path, help="a model folder with the student's weights")
    parser.add_argument("--seeds", default="0", help="by comma")
    parser.add_argument("--images", type=int, default=4_440, help="of CIFAR-10, at most")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=64, help="the student's")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--curves", action="store_true")
    arguments = parser.parse_args()
    if arguments.table or arguments.curves:
        lines = read_lines(Line, FILE)
        text = render_table(lines) if arguments.table else render_curves(arguments.folder)
        sys.stdout.write(f"{text}\n")
        return
    if arguments.photos is None or arguments.teacher is None:
        parser.error("name a set, its folder and --teacher, or use --table")
    root, images = arguments.photos, 0
    if arguments.set == "cifar10":
        images = arguments.images
        root = copy_cifar(arguments.folder, Size(images, _TEST), root)
    teacher, start, start_name = arguments.teacher, arguments.start, RANDOM
    settings = [f"data.root={root}", f"teacher.checkpoint={teacher}"]
    if start is None:
        settings += ["student.pretrained=false", "optimizer.lr=0.003"]
    else:
        start_name = start.name
        settings += [f"student.checkpoint={start}", "optimizer.lr=0.001"]
    for seed in map(int, arguments.seeds.split(",")):
        for student in arguments.students.split(","):
            models = (teacher.name, student, start_name)
            extent = (images, arguments.epochs, arguments.pixels)
            key = Key(arguments.set, *models, *extent, seed)
            if key in map(read_key, read_lines(Line, FILE)):
                continue
            line = measure(key, settings, arguments.folder)
            # read again: another process may have written lines meanwhile
            lines = [*read_lines(Line, FILE), line]
            write_lines(sorted(lines, key=lambda each: astuple(read_key(each))), FILE)


def measure(key: Key, settings: Sequence[str], folder: Path) -> Line:
    """Train and export a student in `folder`. settings: those that are no part of the
    key.
    """
    out = folder / "-".join(map(str, astuple(key)))
    own = (
        f"data.image_size={key.pixels}",
        f"student.image_size={key.pixels}",  # weights have a size of their own
        f"student.name={key.student}",
        f"trainer.max_epochs={key.epochs}",
        f"seed={key.seed}",
        f"out={out}",
        f"stages={folder / 'stages'}",
    )
    run_command("distill", [*SETTINGS, *settings, *own])
    run_command("export", [f"run={out}", FORMATS])
    return parse_run(out, key)


def read_key(line: Line) -> Key:
    """What a line is about."""
    return Key(**{each.name: getattr(line, each.name) for each in fields(Key)})


def parse_run(out: Path, key: Key) -> Line:
    """The line of a finished run with exported files."""
    record = read(out / RESULTS).embedding
    last = record.last if record else None
    exports = read_exports(out)
    assert last is not None
    assert exports is not None
    split = last[1]
    models = {role: split.models[role] for role in ("untouched", "student", "teacher")}
    values: dict[str, Any] = {}
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
        **vars(key),
        queries=split.num_queries,
        int8_overlap_kept=round_value(overlaps["onnx_int8"] / overlaps["onnx"]),
        **values,
    )


def render_table(lines: Sequence[Line]) -> str:
    """A table in Markdown: by set, student and settings the means over the seeds, in %,
    with the outer ends of the seeds' intervals.
    """
    gaps = tuple(f"gap closed: {title}" for title in METRICS.values())
    purities = ("purity untouched", "student", "teacher")
    heads: tuple[str, ...] = (
        "set",
        "teacher",
        "student",
        "start",
        *("images", "epochs", "px", "seeds"),
    )
    heads = (*heads, *purities, *gaps, "int8 keeps of the overlap")
    rows = [heads, ("---",) * len(heads)]
    by_settings: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        by_settings.setdefault(astuple(read_key(line))[:-1], []).append(line)
    for settings, own in by_settings.items():
        cells = [*(str(each or "all") for each in settings), str(len(own))]
        cells += [_average(own, f"{role}_purity") for role in ("untouched", "student", "teacher")]
        cells += [_format_gap(own, metric) for metric in METRICS]
        rows.append((*cells, _average(own, "int8_overlap_kept")))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def render_curves(folder: Path) -> str:
    """For each finished run in `folder`, the student's purity on validation after each
    epoch, in %.
    """
    texts = []
    for path in sorted(folder.glob(f"*/{CURVES}")):
        curves = pd.read_csv(path)
        purity = curves.loc[curves["stage"] == "student", "validation/purity"].dropna()
        texts.append(f"{path.parent.name}: {' '.join(f'{100 * each:.1f}' for each in purity)}")
    return "\n".join(texts)


def _average(lines: Sequence[Line], name: str) -> str:
    return f"{100 * fmean(getattr(each, name) for each in lines):.1f}"


def _format_gap(lines: Sequence[Line], metric: str) -> str:
    low = 100 * min(getattr(each, f"{metric}_gap_low") for each in lines)
    high = 100 * max(getattr(each, f"{metric}_gap_high") for each in lines)
    return f"{_average(lines, f'{metric}_gap')} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()
