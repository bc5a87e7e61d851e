"""What all commands share: ``--help`` and ``--version`` at once, Hydra around a task
otherwise, and an exit code that says how it ended.

Hydra is imported once there is something to compose, torch inside the task.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from kd_app.commands.help import find_answer
from kd_app.training.distributed.torchrun import Torchrun, is_follower

Task = Callable[[dict[str, Any], int | None], None]
"""``task(config, trial)``: `trial` is the number of the trial in a sweep, else None."""


def run(
    task: Task, primary: str, *, after_sweep: Callable[[dict[str, Any]], None] | None = None
) -> NoReturn:
    """Compose ``conf/<primary>.yaml`` with the words of the command line, run `task`
    once, or once a trial, and exit.
    """
    if text := find_answer(primary, sys.argv[1:]):
        print(text)
        sys.exit(0)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    signal.signal(signal.SIGTERM, _raise_terminated)
    sys.exit(_run_under_torchrun(lambda: _run(task, primary, after_sweep)))


def _run(task: Task, primary: str, after_sweep: Callable[[dict[str, Any]], None] | None) -> int:
    from kd_app.commands.hydra_app import run_with_hydra

    return run_with_hydra(task, primary, after_sweep)


def _run_under_torchrun(body: Callable[[], int]) -> int:
    """Run `body` in the first of torchrun's processes, and let the others follow until
    it is done; its exit code. Alone it is just `body`.
    """
    if is_follower():
        from kd_app.training.distributed.launch import follow

        with suppress(KeyboardInterrupt):
            follow()
        return 0
    try:
        return body()
    finally:
        torchrun = Torchrun.from_env()
        if torchrun is not None:
            torchrun.dismiss()


def _raise_terminated(number: int, frame: Any) -> NoReturn:
    sys.exit(143)
