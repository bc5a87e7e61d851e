"""Opens a file and lets it answer, in a process that imports nothing but numpy and what
the file needs; prints what that took as JSON.

``python -m kd_app.deployment.cold_start_worker <module:opener> <file> <batch> <channels>
<height> <width>``

``opener(path, threads=1)`` gives what answers.
"""

import sys
import time

_BEGAN = time.perf_counter()
_AGAIN = 5


def main(opener: str, file: str, *shape: str) -> None:
    """Print ``cold_start_seconds``, ``start_seconds`` and ``peak_memory_bytes``, see
    `kd_app.deployment.cold_start`.
    """
    import json
    import statistics
    from pathlib import Path
    from pkgutil import resolve_name

    import numpy as np

    images = np.zeros([int(size) for size in shape], dtype=np.uint8)

    def answered() -> float:
        start = time.perf_counter()
        resolve_name(opener)(Path(file), threads=1).infer_logits(images)
        return time.perf_counter() - start

    answered()
    cold, peak = time.perf_counter() - _BEGAN, _read_peak_memory()
    print(
        json.dumps(
            {
                "cold_start_seconds": cold,
                "start_seconds": statistics.median(answered() for _ in range(_AGAIN)),
                "peak_memory_bytes": peak,
            }
        )
    )


def _read_peak_memory() -> int:
    """The most memory this process has had resident, in bytes.

    On Linux from /proc: what getrusage says there is at least what the process that
    started this one had.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as told:
            return next(1024 * int(line.split()[1]) for line in told if line.startswith("VmHWM:"))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
