"""Worker process of `kd_app.deployment.cold_start`.

``python -m kd_app.deployment.cold_start_worker <module:opener> <file> <batch>
<channels> <height> <width>``

The process imports nothing but numpy and the packages that the file needs. Its output
is JSON. ``opener(path, threads=1)`` returns an object with the method `infer_logits`.
"""

import sys
import time

_BEGAN = time.perf_counter()
_REPEATS = 5


def main(opener: str, file: str, *shape: str) -> None:
    """Print ``cold_start_seconds``, ``start_seconds`` and ``peak_memory_bytes``."""
    # Imports belong to the cold start, hence they come after the clock has started.
    import json
    import statistics
    from pathlib import Path
    from pkgutil import resolve_name

    import numpy as np

    images = np.zeros([int(size) for size in shape], dtype=np.uint8)

    def time_first_inference() -> float:
        start = time.perf_counter()
        resolve_name(opener)(Path(file), threads=1).infer_logits(images)
        return time.perf_counter() - start

    time_first_inference()
    cold, peak = time.perf_counter() - _BEGAN, _read_peak_memory()
    times = [time_first_inference() for _ in range(_REPEATS)]
    measurement = {
        "cold_start_seconds": cold,
        "start_seconds": statistics.median(times),
        "peak_memory_bytes": peak,
    }
    print(json.dumps(measurement))


def _read_peak_memory() -> int:
    """Peak resident memory of this process, in bytes."""
    # On Linux, getrusage starts from the peak of the parent process; /proc does not.
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
