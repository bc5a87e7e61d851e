"""How do time and memory grow with the number of images? ``python -m benchmarks.scale``

Each part runs in a process of its own, for 10,000, 100,000 and 1,000,000 synthetic
images (``--rows``). The processor time and the largest memory of the process are
measured from outside; what the same process takes for 2,000 rows is subtracted from
the time. The last column is how many times the time grows when the rows grow tenfold:
10 is linear.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from kd_app.data.source import Listing

CLASSES, SCORED_CLASSES, GROUPS = 100, 10, 10
SMALL = 2_000
FILE_LIMIT = 100_000
"""Rows up to which real files are listed: a million files take long to write."""


class Cost(NamedTuple):
    """Seconds of processor time, and MiB of memory at most."""

    seconds: float
    memory: float


def build_listing(rows: int, *, groups: bool = False) -> "Listing":
    """Return a `Listing` with long names and digests; groups: ten images in each."""
    from kd_app.data.source import Listing

    random = np.random.default_rng(0)
    target = random.integers(0, CLASSES, rows)
    names = tuple(f"class{label:03}/{number:08}.jpg" for number, label in enumerate(target))
    empty = ("",) * rows
    group = tuple(f"patient{number // GROUPS}" for number in range(rows)) if groups else empty
    content = random.bytes(32 * rows)
    digests = tuple(content[start : start + 32] for start in range(0, 32 * rows, 32))
    classes = tuple(f"class{number:03}" for number in range(CLASSES))
    return Listing(classes, names, target, empty, group, "", digests=digests)


def fingerprint(rows: int, folder: Path) -> None:
    """Hash a listing."""
    from kd_app.data.fingerprint import add_fingerprint

    listing = build_listing(rows)
    add_fingerprint(listing, listing.digests)


def split(rows: int, folder: Path) -> None:
    """Divide the images by class, and write the table of the splits."""
    _split(rows, folder, groups=False)


def split_groups(rows: int, folder: Path) -> None:
    """Divide the images in groups, and write the table of the splits."""
    _split(rows, folder, groups=True)


def _split(rows: int, folder: Path, *, groups: bool) -> None:
    from kd_app.data.splits import split as divide
    from kd_app.data.splits import write_split

    listing = build_listing(rows, groups=groups)
    division = divide(listing, seed=0, validation=0.1, test=0.2, copies=np.arange(rows))
    write_split(folder / "split.csv", listing, division.names)


def list_files(rows: int, folder: Path) -> None:
    """List, hash and divide the files of a folder, which are written before."""
    from kd_app.config.compose import compose_config
    from kd_app.data.build import build_data

    settings = compose_config("distill", ["data=folder", f"data.root={folder / 'files'}"])
    build_data(settings["data"]).list()


def write_files(rows: int, folder: Path) -> None:
    """Write the files for `list_files`: too small to be images, which are not read."""
    for label in range(CLASSES):
        (folder / "files" / f"{label:03}").mkdir(parents=True)
    for number in range(rows):
        name = folder / "files" / f"{number % CLASSES:03}" / f"{number:08}.jpg"
        name.write_bytes(b"\xff\xd8\xff" + number.to_bytes(8, "big") * 60)


def measure_predictions(rows: int, folder: Path) -> None:
    """Measure two models on all images, with intervals and a comparison, and write the
    records of the images.
    """
    from kd_app.metrics.record import Predictions
    from kd_app.metrics.report_metrics import measure_split

    logits, target = _draw_logits(rows)
    index = np.arange(rows)
    records = {name: Predictions(index, target, each) for name, each in logits.items()}
    measure_split(records, seed=0, confidence=0.95)
    _write_predictions(folder, logits, target)


def _draw_logits(rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The logits of a teacher and a student, and the labels."""
    random = np.random.default_rng(0)
    target = random.integers(0, SCORED_CLASSES, rows)
    logits = {
        name: random.standard_normal((rows, SCORED_CLASSES), dtype=np.float32)
        for name in ("teacher", "student")
    }
    for each in logits.values():
        each[np.arange(rows), target] += 3
    return logits, target


def _write_predictions(folder: Path, logits: dict[str, np.ndarray], target: np.ndarray) -> None:
    from kd_app.reporting.predictions import write_predictions
    from kd_app.run_files import PREDICTIONS

    index = np.arange(len(target))
    file = [f"{number:08}.jpg" for number in index]
    write_predictions(folder / PREDICTIONS, index=index, file=file, target=target, logits=logits)


def report(rows: int, folder: Path) -> None:
    """Write the page of a finished run, which is made before, with its tables."""
    from kd_app.reporting.html import write_report

    write_report([folder / "run"], folder / "page")


def write_run(rows: int, folder: Path) -> None:
    """Make the run for `report`: a small one, with the predictions of many images."""
    import json

    from kd_app.digest import seal
    from kd_app.run_files import EXAMPLES, PREDICTIONS, RESULTS

    run(SMALL, folder)
    _write_predictions(folder / "run", *_draw_logits(rows))
    (folder / "run" / EXAMPLES).unlink()  # examples are chosen from the predictions then
    path = folder / "run" / RESULTS
    results = json.loads(path.read_text(encoding="utf-8"))
    changed = (PREDICTIONS, EXAMPLES)
    results["files"] = [file for file in results["files"] if file["name"] not in changed]
    path.write_text(json.dumps(seal(results)), encoding="utf-8")


def run(rows: int, folder: Path) -> None:
    """A whole `kd-distill` on noise of 8x8 pixels, with two training steps: splits,
    copies, evaluation, intervals, records and report.
    """
    from kd_app.config.compose import compose_config
    from kd_app.jobs.distill import distill

    settings = [
        "data=digits",
        "data.source._target_=benchmarks.noise.Noise",
        f"+data.source.images={rows}",
        "+data.source.side=8",
        "data.batch_size=512",
        "teacher.name=resnet8",
        "student.name=resnet8",
        "controls=[]",
        "logger=[csv]",
        "checks=off",
        "trainer.max_epochs=1",
        "teacher.max_epochs=1",
        "trainer.limit_train_batches=2",
        f"out={folder / 'run'}",
        f"stages={folder / 'stages'}",
    ]
    distill(compose_config("distill", settings))


PARTS: Final[Mapping[str, Callable[[int, Path], None]]] = {
    "list_files": list_files,
    "fingerprint": fingerprint,
    "split": split,
    "split_groups": split_groups,
    "measure_predictions": measure_predictions,
    "report": report,
    "run": run,
}
PREPARATIONS: Final[Mapping[str, Callable[[int, Path], None]]] = {
    "list_files": write_files,
    "report": write_run,
}
"""What is written before a part is measured."""


def measure_part(part: str, rows: int, folder: Path) -> Cost:
    """Run a part in a process of its own, and measure that process. What the part needs
    is written before, by another process.
    """
    command = [sys.executable, "-m", "benchmarks.scale", "--part", part, "--folder", str(folder)]
    command += ["--rows", str(rows)]
    if part in PREPARATIONS:
        subprocess.run([*command, "--prepare"], check=True, stdout=subprocess.DEVNULL)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{part} of {rows:,} rows ended with exit code {process.returncode}")
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def print_table(rows: list[int], parts: list[str]) -> None:
    """Print a Markdown table of all costs."""
    header = " | ".join(f"{number:,} rows" for number in rows)
    print(f"| part | {header} | growth of the time per tenfold |")
    print("|---|" + "---|" * (len(rows) + 1), flush=True)
    for part in parts:
        costs = []
        for number in (SMALL, *rows):
            if part == "list_files" and number > FILE_LIMIT:
                continue
            with tempfile.TemporaryDirectory() as name:
                cost = measure_part(part, number, Path(name))
            costs.append(cost)
        start, *costs = costs
        costs = [cost._replace(seconds=cost.seconds - start.seconds) for cost in costs]
        cells = [f"{cost.seconds:.1f} s, {cost.memory:,.0f} MiB" for cost in costs]
        cells += ["not run"] * (len(rows) - len(costs))
        growth = ", ".join(
            f"{(after.seconds / max(before.seconds, 0.01)) ** (1 / np.log10(more / less)):.1f}"
            for before, after, less, more in zip(costs, costs[1:], rows, rows[1:], strict=False)
        )
        print(f"| {part} | {' | '.join(cells)} | {growth} |", flush=True)


def main() -> None:
    """Print the table, or run one part in this process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--part", help="run only this part, in this process")
    parser.add_argument("--prepare", action="store_true", help="only write what it needs")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.part is None:
        print_table(arguments.rows, arguments.parts)
        return
    parts = PREPARATIONS if arguments.prepare else PARTS
    parts[arguments.part](arguments.rows[0], arguments.folder)


if __name__ == "__main__":
    main()
