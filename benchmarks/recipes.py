"""Which default settings are best, and are they as good as a careful loop by hand?
``python -m benchmarks.recipes --cifar10=<folder> --flowers=<folder>``, then ``python -m
benchmarks.recipes_page`` for docs/recipes.md

Candidates for the defaults are compared on validation images of small copies of four
image sets: all of them with one seed, the best ones with three. Then the defaults are
compared with a careful loop by hand (`benchmarks.careful_loop`) on test images. Every
trial is a line of docs/recipes.jsonl, and a trial that has a line is not run again: the
command can be stopped at any time, and `--hours` stops it.

The committed lines are those of `--scale quick`. `--scale full --hours 8 --pairs 2`
runs 10,000 images of their own size, two pairs and five seeds.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.recipe_candidates import STUDIES
from benchmarks.recipe_trials import (
    BY_HAND,
    FILE,
    IMBALANCED,
    SCALES,
    SETS,
    Measured,
    Place,
    Trial,
    measure_trial,
)

_FOLDER = Path("runs/recipes")


def read_trials(path: Path = FILE) -> dict[Trial, Measured]:
    """The measured trials; a line that was cut off is skipped."""
    measured: dict[Trial, Measured] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        measured[Trial(**record["trial"])] = Measured(**record["measured"])
    return measured


def write_trial(trial: Trial, measured: Measured, path: Path = FILE) -> None:
    """Append a line."""
    record = {"trial": trial._asdict(), "measured": measured._asdict()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def find_missing(
    trials: Iterable[Trial], sets: Sequence[str], arms: Sequence[str], path: Path = FILE
) -> list[Trial]:
    """The trials of these sets and arms that have no line."""
    known = read_trials(path)
    return [
        each
        for each in trials
        if each not in known and each.data in sets and each.arm.removesuffix(" by hand") in arms
    ]


def run_trial(trial: Trial, place: Place, path: Path = FILE) -> None:
    """Measure a trial and write its line."""
    measured = measure_trial(trial, place)
    write_trial(trial, measured, path)
    print(
        f"{trial.study}, {trial.data}, {trial.pair}, {trial.arm}, seed {trial.seed},"
        f" {trial.candidate or 'defaults'}: {100 * measured.top1:.2f} %"
        f" ({measured.seconds:.0f} s)",
        flush=True,
    )


def main() -> int:
    """Run what lacks; exit code 1 if the time is over before that."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar10", type=Path, required=True, help="has train/ and test/")
    parser.add_argument("--flowers", type=Path, required=True, help="has a folder per class")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="of copies and stages")
    parser.add_argument("--scale", choices=list(SCALES), default="quick")
    parser.add_argument("--pairs", type=int, default=1, help="pairs of models of each set")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--studies", nargs="*", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--sets", nargs="*", default=[*SETS, IMBALANCED])
    parser.add_argument("--arms", nargs="*", default=list(BY_HAND))
    args = parser.parse_args()
    place = Place(args.folder, args.cifar10, args.flowers)
    end = time.monotonic() + 3600 * args.hours
    for name in args.studies:
        # listed again after each trial: later ones may depend on it
        while True:
            trials = STUDIES[name](args.scale, args.pairs, read_trials())
            missing = find_missing(trials, args.sets, args.arms)
            if not missing:
                break
            if time.monotonic() > end:
                print(f"The time is over before the end of {name}. Repeat the command to go on.")
                return 1
            run_trial(missing[0], place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
