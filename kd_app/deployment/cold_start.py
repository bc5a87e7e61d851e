"""Start-up time and memory of an exported file."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from kd_app.config import RunError
from kd_app.deployment.cascade import LogitsModel

_LIMIT_SECONDS = 600


def measure_cold_start(
    path: Path, shape: Sequence[int], opener: Callable[..., LogitsModel]
) -> dict[str, float]:
    """Measure the first inference on ``uint8 [*shape]`` images in a new process.

    ``opener(path, threads=1)`` must be a function of a module. The result has these
    keys:

    - start_seconds: time to open the file and compute the first logits, with the
      runtime already imported; the median of five times
    - cold_start_seconds: the same from the first line of a new process, including the
      imports of numpy and the runtime
    - peak_memory_bytes: peak resident memory of the process up to the first logits,
      including Python and the runtime

    Raises `RunError` if the process fails.
    """
    arguments = [
        f"{opener.__module__}:{opener.__qualname__}",
        str(path),
        *(str(size) for size in shape),
    ]
    try:
        process = subprocess.run(
            [sys.executable, "-m", "kd_app.deployment.cold_start_worker", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=_LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise RunError(
            f"{str(path)!r} did not answer within {_LIMIT_SECONDS} seconds in a separate process."
        ) from None
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        raise RunError(f"{str(path)!r} failed in a separate process: {lines[-1]}.")
    measurement: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return measurement
