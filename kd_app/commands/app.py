"""The entry point of all commands: print ``--help`` or ``--version``, or run a task
with Hydra and exit with a code for the result.

For a fast start, Hydra is imported only to compose a configuration, and torch only
inside the task. The first imports are few, because a signal before `run` prints
Python's own traceback.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from kd_app.signals import compute_exit_code, find_stop, name_signal, stop_on_signals
from kd_app.streams import drop_lost_output

Task = Callable[[dict[str, Any], int | None], None]
"""``task(config, trial)``: `trial` is the number of the trial in a sweep, else None."""
AfterSweep = Callable[[dict[str, Any], Callable[[int], dict[str, Any] | None]], None]
"""``after_sweep(config, find_trial)``: the config of the sweep's last trial, and a
function that returns the config of a trial by its number; None if the trial did not run
in this process.
"""


def run(task: Task, primary: str, *, after_sweep: AfterSweep | None = None) -> NoReturn:
    """Compose ``conf/<primary>.yaml`` with the command line, run `task` once or once
    for each trial, and exit.

    after_sweep: called after the last trial.
    """
    with drop_lost_output(), stop_on_signals():
        code = _run_to_end(lambda: _run(task, primary, after_sweep))
    sys.exit(code)


def _run_to_end(body: Callable[[], int]) -> int:
    """Run `body` and return its exit code, or that of a signal which stopped the
    imports or the composition of the configuration.
    """
    try:
        return body()
    except BaseException:
        # an import can turn the exception of a signal into another one
        number = find_stop()
        if number is None:
            raise
        print(f"Stopped by {name_signal(number)}.", file=sys.stderr)
        return compute_exit_code(number)


def _run(task: Task, primary: str, after_sweep: AfterSweep | None) -> int:
    from kd_app.commands.help import find_help

    if text := find_help(primary, sys.argv[1:]):
        print(text)
        return 0
    os.environ["HYDRA_FULL_ERROR"] = "1"
    return _run_under_torchrun(lambda: _run_with_hydra(task, primary, after_sweep))


def _run_with_hydra(task: Task, primary: str, after_sweep: AfterSweep | None) -> int:
    from kd_app.commands.hydra_app import run_with_hydra

    return run_with_hydra(task, primary, after_sweep)


def _run_under_torchrun(body: Callable[[], int]) -> int:
    """Run `body` in torchrun's first process while the other processes follow; return
    the exit code. Without torchrun, just run `body`.
    """
    from kd_app.distributed.torchrun import Torchrun, is_follower

    if is_follower():
        from kd_app.training.launch import run_follower

        with suppress(KeyboardInterrupt):
            run_follower()
        return 0
    try:
        return body()
    finally:
        torchrun = Torchrun.from_env()
        if torchrun is not None:
            torchrun.send_end()
