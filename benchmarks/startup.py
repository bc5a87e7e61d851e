"""How long does a command take until it works? ``python -m benchmarks.startup``

- the first training step of the demo, beyond importing torch, lightning, timm and
  torchmetrics in a bare process. Target: 3 s.
- ``kd-distill --help``, as a share of importing torch. Target: a quarter.
- `kd-report` of 100 runs. Target: 20 s.

The processes take turns; figures are medians of processor time, which other work on the
machine changes little, and of wall time.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

BARE: Final = "import torch, lightning.pytorch, timm, torchmetrics"
TORCH: Final = "import torch"
FIRST_STEP: Final = """
import os, sys
from kd_app.commands import distill

def stop(self, batch, batch_idx):
    os._exit(0)

class Finder:
    # The class is patched when the command imports it.
    def find_spec(self, name, path=None, target=None):
        if name == "kd_app.training.fit":
            from kd_app.training.module import Distillation
            Distillation.training_step = stop
        return None

sys.meta_path.insert(0, Finder())
sys.argv = ["kd-distill", f"out={sys.argv[1]}/run", f"stages={sys.argv[1]}/stages"]
distill.main()
"""
HELP: Final = """
import sys
from kd_app.commands.distill import main
sys.argv = ["kd-distill", "--help"]
main()
"""
SECONDS, SHARE, REPORT_SECONDS = 3.0, 0.25, 20.0
RUNS = 100


class Duration(NamedTuple):
    """Seconds of processor time of a process and its children, and of wall time."""

    processor: float
    wall: float


def time_process(*command: str) -> Duration:
    """Run a Python process with these arguments, and return how long it took."""
    start, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    after, wall = os.times(), time.perf_counter() - start
    processor = after.children_user + after.children_system
    return Duration(processor - before.children_user - before.children_system, wall)


def measure_starts(rounds: int, folder: Path) -> Mapping[str, Duration]:
    """Return the median durations of starting processes, which take turns."""
    times: dict[str, list[Duration]] = {}
    for number in range(rounds + 1):
        work = folder / str(number)
        for name, command in {
            "torch": ("-c", TORCH),
            "bare": ("-c", BARE),
            "help": ("-c", HELP),
            "first step": ("-c", FIRST_STEP, str(work)),
        }.items():
            duration = time_process(*command)
            # The first round reads the files from disk.
            if number:
                times.setdefault(name, []).append(duration)
    return {
        name: Duration(*map(statistics.median, zip(*durations, strict=True)))
        for name, durations in times.items()
    }


def time_report(folder: Path, runs: int) -> Duration:
    """Return how long `kd-report` takes for copies of one short run of the demo."""
    first = folder / "runs" / "000"
    settings = (f"out={first}", f"stages={folder / 'stages'}", "debug=fdr")
    time_process("-m", "kd_app.commands.distill", *settings)
    for number in range(1, runs):
        shutil.copytree(first, first.with_name(f"{number:03}"))
    return time_process(
        "-m",
        "kd_app.commands.report",
        f"runs=[{folder / 'runs'}]",
        f"out={folder / 'report'}",
    )


def main() -> int:
    """Print the durations; exit code 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of the report")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        starts = measure_starts(arguments.rounds, Path(name))
        report = time_report(Path(name), arguments.runs)
    for label, (processor, wall) in {
        **starts,
        f"kd-report of {arguments.runs} runs": report,
    }.items():
        print(f"{label:24} {processor:6.2f} s of processor time, {wall:6.2f} s", flush=True)
    beyond = starts["first step"].processor - starts["bare"].processor
    share = starts["help"].processor / starts["torch"].processor
    print(f"The first step comes {beyond:.2f} s after the bare imports; target {SECONDS} s")
    print(f"--help takes {share:.2f} of importing torch; target {SHARE}")
    print(f"The report takes {report.processor:.1f} s; target {REPORT_SECONDS} s")
    return int(beyond > SECONDS or share > SHARE or report.processor > REPORT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
