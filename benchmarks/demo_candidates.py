"""Which run shows on real images, within two minutes, what distillation is for?
``python -m benchmarks.demo_candidates``

The data of every candidate are scikit-learn's digits, the only set of images that
kd_app's requirements bring. Half of them are test images, so that a gain of two or
three points exceeds the noise. Each candidate is run with three seeds, which set the
split, the labels that are used, the teacher and the student; two also in float32.
Finished runs are read from the extract (``docs/demo-candidates.csv``), so the command
resumes. It prints the table, which ``docs/measured.md`` shows.
"""

import argparse
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from kd_app import distill
from kd_app.reporting.results import Results
from kd_app.reporting.sentences import format_difference

EXTRACT: Final = Path(__file__).parents[1] / "docs" / "demo-candidates.csv"
SEEDS: Final = (0, 1, 2)
COMMON: Final = (
    "data=digits",
    "data.split.test=0.5",
    "logger=[csv]",
)


def _few(share: float, *, epochs: int, teacher_epochs: int) -> tuple[str, ...]:
    """Settings with few labels. The validation images have labels, too, so few."""
    return (
        "data.split.validation=0.05",
        f"data.label_fraction={share}",
        "controls=[labels_only,pseudo_labels]",
        f"trainer.max_epochs={epochs}",
        f"teacher.max_epochs={teacher_epochs}",
    )


ALL_LABELS: Final = ("data.label_fraction=null", "controls=[labels_only]", "trainer.max_epochs=40")
QUARTER: Final = ("student.kwargs.widths=[4,4,8,16]",)
NARROW: Final = ("student.kwargs.widths=[3,3,6,12]",)
FLOAT32: Final = ("trainer.precision=32-true",)
HALF: Final = ("student.kwargs.widths=[8,8,16,32]",)
FIVE: Final = _few(0.05, epochs=60, teacher_epochs=100)
LONGER: Final = _few(0.05, epochs=100, teacher_epochs=100)


@dataclass(frozen=True)
class Candidate:
    """A run that may become the demo. teacher: a run whose student is the teacher."""

    name: str
    overrides: tuple[str, ...]
    teacher: tuple[str, ...] = ()


CANDIDATES: Final = {
    "all": Candidate("all labels", ALL_LABELS),
    "all-quarter": Candidate(
        "all labels; student of a quarter of the width", (*ALL_LABELS, *QUARTER)
    ),
    "tenth": Candidate("10 % of the labels", _few(0.1, epochs=60, teacher_epochs=100)),
    "twentieth": Candidate("5 % of the labels", FIVE),
    "twentieth-half": Candidate("5 % of the labels; student of half the width", (*FIVE, *HALF)),
    "twentieth-quarter": Candidate(
        "5 % of the labels; student of a quarter of the width", (*FIVE, *QUARTER)
    ),
    "long-quarter": Candidate("the same, 100 epochs", (*LONGER, *QUARTER)),
    "long-quarter-float32": Candidate("the same in float32", (*LONGER, *QUARTER, *FLOAT32)),
    "chosen": Candidate("the student at 3/16 of the width", (*LONGER, *NARROW)),
    "chosen-float32": Candidate("the same in float32", (*LONGER, *NARROW, *FLOAT32)),
    "passed-on": Candidate(
        "5 % of the labels for the student, all for the teacher",
        FIVE,
        (
            "student.name=wrn_16_2",
            "data.split.validation=0.05",
            "data.label_fraction=null",
            "teacher=none",
            "controls=[]",
            "trainer.max_epochs=40",
        ),
    ),
}


class Row(BaseModel):
    """One run of a candidate: labels (also those of validation), test accuracies, and
    the gains over both controls with 95 % bounds over the test images, all as shares.
    """

    candidate: str
    seed: int
    precision: str
    labels: int
    test_images: int
    teacher: float
    labels_only: float
    distilled: float
    gain: float
    gain_low: float
    gain_high: float
    over_pseudo: float | None = None
    over_pseudo_low: float | None = None
    over_pseudo_high: float | None = None


def run_candidate(key: str, seed: int, folder: Path) -> Row:
    """Train a candidate with one seed, or read its finished run."""
    candidate, out = CANDIDATES[key], folder / key / str(seed)
    seeds = (f"seed={seed}", f"data.seed={seed}", f"stages={folder / 'stages'}")
    teacher: tuple[str, ...] = (f"teacher.seed={seed}",)
    if candidate.teacher:
        distill(*COMMON, *seeds, *candidate.teacher, f"out={folder / key / f'teacher-{seed}'}")
        teacher = (f"teacher.checkpoint={folder / key / f'teacher-{seed}'}",)
    run = distill(*COMMON, *seeds, *teacher, *candidate.overrides, f"out={out}")
    return _build_row(key, run.results)


def _build_row(key: str, results: Results) -> Row:
    test, data = results.test, results.data
    assert test is not None
    assert test.pair is not None
    assert data is not None
    top1 = {role: metrics.top1 for role, metrics in test.by_model.items()}
    over = test.gains.get("pseudo_labels")
    return Row.model_validate(
        {
            "candidate": key,
            "seed": results.seed,
            "precision": results.environment["precision"],
            "labels": (data.num_labeled or data.sizes["train"]) + data.sizes["validation"],
            "test_images": test.num_images,
            "teacher": top1["teacher"],
            "labels_only": top1["labels_only"],
            "distilled": top1["student"],
            "gain": test.pair.gain,
            "gain_low": test.pair.gain_low,
            "gain_high": test.pair.gain_high,
            "over_pseudo": over.value if over else None,
            "over_pseudo_low": over.low if over else None,
            "over_pseudo_high": over.high if over else None,
        }
    )


def read_rows(path: Path) -> list[Row]:
    """Read the extract; an empty list without one."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Row.model_validate({name: text for name, text in line.items() if text})
            for line in csv.DictReader(file)
        ]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the extract, in the order of the candidates and seeds."""
    order = list(CANDIDATES)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(Row.model_fields), lineterminator="\n")
        writer.writeheader()
        for row in sorted(rows, key=lambda row: (order.index(row.candidate), row.seed)):
            writer.writerow(
                {
                    name: round(value, 5) if isinstance(value, float) else value
                    for name, value in row.model_dump().items()
                }
            )


def render_table(rows: Sequence[Row]) -> Iterator[str]:
    """A Markdown table with a line for each candidate and seed."""
    columns = ("candidate", "seed", "labels", "teacher", "labels only", "distilled", "gain")
    yield f"| {' | '.join(columns)} | over pseudo-labels |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        gain = format_difference(row.gain, row.gain_low, row.gain_high)
        over = format_difference(row.over_pseudo, row.over_pseudo_low, row.over_pseudo_high)
        cells = (
            CANDIDATES[row.candidate].name,
            row.seed,
            row.labels,
            *(f"{100 * top1:.2f}" for top1 in (row.teacher, row.labels_only, row.distilled)),
            "{} ({})".format(*gain),
            "" if row.over_pseudo is None else "{} ({})".format(*over),
        )
        yield f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Run what the extract lacks, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo-candidates"))
    parser.add_argument("--only", default=",".join(CANDIDATES), help="candidates, with commas")
    arguments = parser.parse_args()
    for key in arguments.only.split(","):
        for seed in SEEDS:
            if (key, seed) not in {(row.candidate, row.seed) for row in read_rows(EXTRACT)}:
                row = run_candidate(key, seed, arguments.out)
                write_rows(EXTRACT, [*read_rows(EXTRACT), row])
    print("\n".join(render_table(read_rows(EXTRACT))))


if __name__ == "__main__":
    main()
