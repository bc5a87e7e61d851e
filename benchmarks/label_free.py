"""Loss terms for ``task=embedding`` on a folder with classes, which only judge: overlap
with the teacher's neighbors, k-NN purity, and the gap that is closed.

``python -m benchmarks.label_free <set> <folder> --teacher <model folder> --seeds 0,1``
trains a small student with each term, and adds a line for each finished run to
docs/label-free-losses.csv; lines that are there are not repeated. Each student is also
compared with that of the first term and the same seed, on the same queries. ``--table``
prints the lines as a table in Markdown.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

from benchmarks.headline import run_command
from benchmarks.lines import read_lines, round_value, write_lines
from kd_app.metrics.embedding_report import (
    STUDENT,
    TEACHER,
    UNTOUCHED,
    EmbeddingComparison,
    JudgeLabels,
    ModelEmbeddings,
)
from kd_app.metrics.record import Predictions
from kd_app.reporting.metrics import Estimate
from kd_app.reporting.results import read
from kd_app.run_files import RESULTS

FILE: Final = Path(__file__).parents[1] / "docs" / "label-free-losses.csv"
CANDIDATES: Final[Mapping[str, Sequence[str]]] = {
    "embedding_cosine": ("loss=[embedding_cosine]",),
    "centered_cosine": ("loss=[embedding_cosine]", "loss.embedding_cosine.center=true"),
    "simple_recipe": ("loss=[simple_recipe]",),
    "embedding_mse": ("loss=[embedding_mse]",),
    "seed_queue": ("loss=[seed_queue]", "loss.seed_queue.size=512"),
    "pkt": ("loss=[pkt]", "loss.pkt.weight=1000"),
    "rkd": ("loss=[rkd]",),
}
"""Name -> overrides."""
FIRST: Final = "embedding_cosine"
SETS: Final[Mapping[str, Sequence[str]]] = {
    "cifar10": ("data.image_size=32",),
    "flowers": ("data.image_size=48",),
}
"""Name of the set -> overrides."""
SETTINGS: Final = (
    "data=folder",
    "task=embedding",
    "teacher.image_size=96",
    "student.name=resnet8",
    "trainer=cpu",
    "trainer.max_epochs=10",
    "data.batch_size=32",
    "data.num_workers=0",
    "data.views=2",
    "teacher.outputs=cached",
    "optimizer.lr=0.003",
    "logger=[csv]",
    "examples=0",
)
_METRICS: Final = ("overlap", "purity")
_GAINS: Final = tuple(f"{metric}_gain{end}" for metric in _METRICS for end in ("", "_low", "_high"))


@dataclass(frozen=True)
class Line:
    """One run: metrics of the student on the test images with their intervals, the gap
    that is closed, the paired differences to the student of the first term (`gain`),
    and the metrics of teacher and untouched student.
    """

    set: str
    seed: int
    loss: str
    ships: str
    queries: int
    overlap: float
    overlap_low: float
    overlap_high: float
    overlap_gap_closed: float
    purity: float
    purity_low: float
    purity_high: float
    purity_gap_closed: float
    overlap_gain: float
    overlap_gain_low: float
    overlap_gain_high: float
    purity_gain: float
    purity_gain_low: float
    purity_gain_high: float
    untouched_overlap: float
    untouched_purity: float
    teacher_purity: float


def main() -> None:
    """Run the candidates that have no line yet, or print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("set", nargs="?", choices=list(SETS))
    parser.add_argument("images", nargs="?", type=Path, help="a folder with a folder per class")
    parser.add_argument("--teacher", type=Path, help="a model folder of timm")
    parser.add_argument("--folder", type=Path, default=Path("runs/label-free"))
    parser.add_argument("--only", default=",".join(CANDIDATES), help="names, by comma")
    parser.add_argument("--seeds", default="0", help="by comma")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        sys.stdout.write(f"{write_table(read_lines(Line, FILE))}\n")
        return
    if arguments.images is None or arguments.teacher is None:
        parser.error("name a set, its folder and --teacher, or use --table")
    for seed in map(int, arguments.seeds.split(",")):
        for name in arguments.only.split(","):
            lines = read_lines(Line, FILE)
            if any(
                (each.set, each.seed, each.loss) == (arguments.set, seed, name) for each in lines
            ):
                continue
            out = arguments.folder / arguments.set / str(seed) / name
            settings = (
                f"data.root={arguments.images}",
                f"teacher.checkpoint={arguments.teacher}",
                f"seed={seed}",
                f"out={out}",
                f"stages={arguments.folder / 'stages'}",
            )
            run_command("distill", [*SETTINGS, *SETS[arguments.set], *settings, *CANDIDATES[name]])
            line = parse_run(out, arguments.set, seed, name)
            write_lines(sort_lines([*lines, line]), FILE)


def parse_run(out: Path, set: str, seed: int, loss: str) -> Line:
    """The line of a finished run. Beside it is the run of the first term."""
    record = read(out / RESULTS).embedding
    last = record.last if record else None
    assert record is not None
    assert last is not None
    split = last[1]
    student, untouched, teacher = (
        split.models[role] for role in ("student", "untouched", "teacher")
    )
    values: dict[str, float] = {}
    for metric in _METRICS:
        bounded: Estimate = getattr(student, metric)
        values[metric] = round_value(bounded.value)
        values[f"{metric}_low"], values[f"{metric}_high"] = map(
            round_value, (bounded.low, bounded.high)
        )
        values[f"{metric}_gap_closed"] = round_value(split.gap_closed[metric].value)
        values[f"untouched_{metric}"] = round_value(getattr(untouched, metric).value)
    values |= _compare(out, out.parent / FIRST) if loss != FIRST else dict.fromkeys(_GAINS, 0.0)
    assert teacher.purity is not None
    values["teacher_purity"] = round_value(teacher.purity.value)
    return Line(
        set=set, seed=seed, loss=loss, ships=record.ships, queries=split.num_queries, **values
    )


def _compare(out: Path, first: Path) -> dict[str, float]:
    """The student's metrics minus those of another run's student, with intervals."""
    embeddings = {
        TEACHER: _load(out, TEACHER),
        UNTOUCHED: _load(first, STUDENT),
        STUDENT: _load(out, STUDENT),
    }
    gallery, queries = (_read_outputs(out, TEACHER, split).target for split in ("train", "test"))
    labels = JudgeLabels(gallery, gallery, queries, int(gallery.max()) + 1)
    comparison = EmbeddingComparison(embeddings, labels, k=10, confidence=0.95)
    values: dict[str, float] = {}
    for metric in _METRICS:
        gain, (low, high) = comparison.estimate_difference(STUDENT, UNTOUCHED, metric)
        names = (name for name in _GAINS if name.startswith(metric))
        values |= dict(zip(names, map(round_value, (gain, low, high)), strict=True))
    return values


def _load(out: Path, role: str) -> ModelEmbeddings:
    gallery, queries = (_read_outputs(out, role, split).logits for split in ("train", "test"))
    # the probe, which reads validation, is not compared
    return ModelEmbeddings(gallery, gallery, queries)


def _read_outputs(out: Path, role: str, split: str) -> Predictions:
    """The outputs that a run measured: those of the stage that it used last."""
    stages = read(out / RESULTS).stages
    path = next(each.path for each in reversed(stages) if each.name == f"answers-{role}-{split}")
    return Predictions.load(Path(path))


def sort_lines(lines: Sequence[Line]) -> list[Line]:
    """The lines, sorted by set, seed and candidate."""
    order = {name: number for number, name in enumerate(CANDIDATES)}
    return sorted(lines, key=lambda each: (each.set, each.seed, order[each.loss]))


def write_table(lines: Sequence[Line]) -> str:
    """A table in Markdown: by set and loss the means over the seeds, in %, with the
    outer ends of the seeds' intervals.
    """
    difference = "minus first"
    heads: tuple[str, ...] = ("set", "loss", "seeds")
    for title in ("teacher's neighbors", "purity"):
        heads += (title, difference, "gap closed")
    rows = [heads, ("---",) * len(heads)]
    for set_name in dict.fromkeys(each.set for each in lines):
        for loss in CANDIDATES:
            own = [each for each in lines if (each.set, each.loss) == (set_name, loss)]
            if own:
                cells = (text for metric in _METRICS for text in _format(own, metric))
                rows.append((set_name, f"`{loss}`", str(len(own)), *cells))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _format(lines: Sequence[Line], metric: str) -> tuple[str, str, str]:
    gap = 100 * fmean(getattr(each, f"{metric}_gap_closed") for each in lines)
    is_first = all(each.loss == FIRST for each in lines)
    difference = "" if is_first else _format_interval(lines, f"{metric}_gain", "+")
    return _format_interval(lines, metric), difference, f"{gap:.1f}"


def _format_interval(lines: Sequence[Line], name: str, sign: str = "") -> str:
    mean = 100 * fmean(getattr(each, name) for each in lines)
    low = 100 * min(getattr(each, f"{name}_low") for each in lines)
    high = 100 * max(getattr(each, f"{name}_high") for each in lines)
    return f"{mean:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


if __name__ == "__main__":
    main()
