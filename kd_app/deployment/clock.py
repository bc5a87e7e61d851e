"""Clocks for measurements of models that may run in processes of their own.

Sending images to such a process is no work of the model: both clocks leave it out.
"""

import time
from dataclasses import dataclass


@dataclass
class _Remote:
    transport_seconds: float = 0.0
    cpu_seconds: float = 0.0


_remote = _Remote()


def count_remote_call(elapsed: float, seconds: float, cpu_seconds: float) -> None:
    """Count a call that took `elapsed` seconds here, and `seconds` of wall time and
    `cpu_seconds` of processor time in the process that did the work.
    """
    _remote.transport_seconds += max(0.0, elapsed - seconds)
    _remote.cpu_seconds += cpu_seconds


def read_seconds() -> float:
    """Seconds since an arbitrary start, without those of transport."""
    return time.perf_counter() - _remote.transport_seconds


def read_cpu_seconds() -> float:
    """Processor seconds of this process and of the processes that run files."""
    return time.process_time() + _remote.cpu_seconds
