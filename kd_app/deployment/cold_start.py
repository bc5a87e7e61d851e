"""What a file takes from nothing to its first answer."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from kd_app.config import RunError
from kd_app.deployment.cascade import CascadeStage


def measure_cold_start(
    path: Path, shape: Sequence[int], opener: Callable[..., CascadeStage]
) -> dict[str, float]:
    """Measured in a process of its own, with one thread and ``uint8 [*shape]`` images;
    ``opener(path, threads=1)`` is a function of a module.

    start_seconds: to open the file and answer, the median of five times once the
    runtime is there. cold_start_seconds: from a new process's first line, the import of
    numpy and of the runtime included. peak_memory_bytes: the most that process had
    resident by its first answer, Python and the runtime included.

    Raises `RunError` where the file gives no answer there.
    """
    words = [
        f"{opener.__module__}:{opener.__qualname__}",
        str(path),
        *(str(size) for size in shape),
    ]
    ended = subprocess.run(
        [sys.executable, "-m", "kd_app.deployment.cold_start_worker", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        why = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        raise RunError(f"{str(path)!r} gave no answer in a process of its own: {why}.")
    told: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return told
