"""Runs in new processes that start fast: each is a fork of the tests' process, which
has imported and composed everything. Real signals end the processes.
"""

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing import get_context, set_start_method
from multiprocessing.process import BaseProcess
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

import torch

from kd_app.commands.exit_codes import run_to_exit_code
from kd_app.config.compose import choose_all_labels

Moment = tuple[str, int]
"""``('module:Class.method', n)``: the n-th call of that function in the process."""


def start(body: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Run `body(*arguments)` in a new process, which can have child processes."""
    # a fork of a process that uses a GPU can't use it
    uses_gpu = torch.cuda.is_available()
    context = get_context("forkserver") if uses_gpu else get_context("fork")
    process = context.Process(target=_run_alone, args=(body, arguments))
    with warnings.catch_warnings(category=DeprecationWarning, action="ignore"):
        process.start()
    return process


def _run_alone(body: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """Run `body` with the streams and the warnings of a process without pytest."""
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    warnings.simplefilter("default")
    body(*arguments)


def wait_for_exit(process: BaseProcess, seconds: float = 120) -> int:
    """Wait for the exit code; minus the number of a signal that killed `process`."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"still alive after {seconds} s")
    return process.exitcode


def start_distill(
    overrides: Sequence[str],
    log: str,
    *moments: Moment,
    sign: int = signal.SIGKILL,
    listens: bool = False,
) -> BaseProcess:
    """Start ``kd-distill <overrides>`` in a new process and process group.

    The process gets the signal `sign` just before each of `moments`. With `listens` the
    process exits with 144 on SIGUSR2, like a requeued job of submitit. The measurement
    of the speed is very short.
    """
    return start(_distill, tuple(overrides), log, moments, sign, listens)


def distill_in_process(
    overrides: Sequence[str],
    log: str,
    *moments: Moment,
    sign: int = signal.SIGKILL,
    listens: bool = False,
) -> int:
    """Run such a process and return the exit code; the output is appended to `log`."""
    process = start_distill(overrides, log, *moments, sign=sign, listens=listens)
    code = wait_for_exit(process)
    # DataLoader workers notice the end of their parent only within 5 s, and would hold
    # the lock of the stage until then
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    return code


def _distill(
    overrides: Sequence[str], log: str, moments: Sequence[Moment], sign: int, listens: bool
) -> None:
    from kd_app.config.compose import compose_config
    from kd_app.jobs.distill import distill
    from tests.builders import quick_speed

    _lead_group(log)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if listens:
        signal.signal(signal.SIGUSR2, lambda number, frame: sys.exit(144))
    for name, count in moments:
        _signal_at(name, count, sign)
    with patch("kd_app.measurement.classification.measure_throughput", quick_speed):
        config = compose_config("distill", choose_all_labels(overrides))
        sys.exit(run_to_exit_code(lambda: distill(config)))


def start_command(words: Sequence[str], log: str) -> BaseProcess:
    """Start the main function of ``kd-distill <words>``, for sweeps and searches. The
    data have all labels unless words choose others.
    """
    return start(_command, tuple(choose_all_labels(words)), log)


def _command(words: Sequence[str], log: str) -> None:
    from kd_app.commands.distill import main

    _lead_group(log)
    sys.argv = ["kd-distill", *words]
    main()


def _lead_group(log: str) -> None:
    """Make this process the leader of a new group; append the output to `log`."""
    os.setsid()
    set_start_method("fork", force=True)
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _signal_at(name: str, count: int, sign: int) -> None:
    module, _, path = name.partition(":")
    *parents, attribute = path.split(".")
    owner = resolve_name(f"{module}:{'.'.join(parents)}") if parents else import_module(module)
    plain, calls = getattr(owner, attribute), 0

    def call_or_signal(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), sign)
        return plain(*args, **kwargs)

    setattr(owner, attribute, call_or_signal)


def wait_for(folder: Path, pattern: str, seconds: float = 60) -> Path:
    """Wait for the first path in `folder` that matches `pattern`."""
    deadline = time.monotonic() + seconds
    while not (path := next(folder.glob(pattern), None)):
        assert time.monotonic() < deadline, f"no {folder}/{pattern} after {seconds} s"
        time.sleep(0.02)
    return path
