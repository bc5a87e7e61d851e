"""Loss terms for ``task=embedding`` on a folder with classes, which only judge: overlap
with the teacher's neighbors, k-NN purity, and the gap that is closed.

``python -m benchmarks.label_free <set> <folder> --teacher <model folder> --seeds 0,1``
trains a small student with each term, and adds a line for each finished run to
docs/label-free-losses.csv; lines that are there are not repeated. ``--table`` prints
the lines as a table in Markdown.
"""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from benchmarks.headline import run_command
from kd_app.reporting.embedding_results import Bounded
from kd_app.reporting.results import read
from kd_app.run_files import RESULTS

FILE: Final = Path(__file__).parents[1] / "docs" / "label-free-losses.csv"
CANDIDATES: Final[Mapping[str, Sequence[str]]] = {
    "embedding_cosine": ("loss=[embedding_cosine]",),
    "simple_recipe": ("loss=[simple_recipe]",),
    "embedding_mse": ("loss=[embedding_mse]",),
    "seed_queue": ("loss=[seed_queue]", "loss.seed_queue.size=512"),
    "pkt": ("loss=[pkt]", "loss.pkt.weight=1000"),
    "rkd": ("loss=[rkd]",),
}
"""Name -> overrides."""
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


@dataclass(frozen=True)
class Line:
    """One run: metrics of the student on the test images with their intervals, the gap
    that is closed, and the metrics of teacher and untouched student.
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
        sys.stdout.write(f"{write_table(read_lines())}\n")
        return
    if arguments.images is None or arguments.teacher is None:
        parser.error("name a set, its folder and --teacher, or use --table")
    for seed in map(int, arguments.seeds.split(",")):
        for name in arguments.only.split(","):
            lines = read_lines()
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
            write_lines([*lines, parse_run(out, arguments.set, seed, name)])


def parse_run(out: Path, set: str, seed: int, loss: str) -> Line:
    """The line of a finished run."""
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
        bounded: Bounded = getattr(student, metric)
        values[metric] = _round(bounded.value)
        values[f"{metric}_low"], values[f"{metric}_high"] = map(_round, (bounded.low, bounded.high))
        values[f"{metric}_gap_closed"] = _round(split.gap_closed[metric].value)
        values[f"untouched_{metric}"] = _round(getattr(untouched, metric).value)
    assert teacher.purity is not None
    values["teacher_purity"] = _round(teacher.purity.value)
    return Line(
        set=set, seed=seed, loss=loss, ships=record.ships, queries=split.num_queries, **values
    )


def _round(value: float | None) -> float:
    return float("nan") if value is None else round(value, 5)


def read_lines(file: Path = FILE) -> list[Line]:
    """The lines of the file; none if it is missing."""
    if not file.is_file():
        return []
    kinds: dict[str, Any] = {field.name: field.type for field in fields(Line)}
    with file.open(encoding="utf-8", newline="") as content:
        return [
            Line(**{name: kinds[name](value) for name, value in row.items()})
            for row in csv.DictReader(content)
        ]


def write_lines(lines: Sequence[Line], file: Path = FILE) -> None:
    """Write the lines, sorted by set, seed and candidate."""
    order = {name: number for number, name in enumerate(CANDIDATES)}
    rows = sorted(lines, key=lambda each: (each.set, each.seed, order[each.loss]))
    with file.open("w", encoding="utf-8", newline="") as content:
        names = [field.name for field in fields(Line)]
        writer = csv.DictWriter(content, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, rows))


def write_table(lines: Sequence[Line]) -> str:
    """A table in Markdown: by set and loss the means over the seeds, in %, with the
    outer ends of the seeds' intervals.
    """
    heads = ("set", "loss", "seeds", "teacher's neighbors", "gap closed", "purity", "gap closed")
    rows = [heads, ("---",) * len(heads)]
    for set_name in dict.fromkeys(each.set for each in lines):
        for loss in CANDIDATES:
            own = [each for each in lines if (each.set, each.loss) == (set_name, loss)]
            if own:
                cells = (text for metric in _METRICS for text in _format(own, metric))
                rows.append((set_name, f"`{loss}`", str(len(own)), *cells))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _format(lines: Sequence[Line], metric: str) -> tuple[str, str]:
    mean, gap = (
        100 * fmean(getattr(each, name) for each in lines)
        for name in (metric, f"{metric}_gap_closed")
    )
    low = 100 * min(getattr(each, f"{metric}_low") for each in lines)
    high = 100 * max(getattr(each, f"{metric}_high") for each in lines)
    return f"{mean:.1f} ({low:.1f} to {high:.1f})", f"{gap:.1f}"


if __name__ == "__main__":
    main()
