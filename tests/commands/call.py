"""The commands as somebody calls them: their words in, exit code, output and errors
out.
"""

import hashlib
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

from kd_app.config.compose import choose_all_labels
from tests.builders import quick_latency, quick_speed

TINY = ("debug=fdr", "logger=[csv]", "teacher.name=resnet8", "examples=12")
"""A whole run in about a second."""
DIVERGING = (
    "optimizer.lr=1000",
    "optimizer.weight_decay=1000",
    "trainer.limit_train_batches=12",
)
"""Each step multiplies the student's weights by a million: the loss overflows."""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


def call(*words: str, command: str = "kd-distill") -> Ended:
    """The command in this process: its own main, with these words. Speed is measured
    for a moment only, and a step is timed once for the forecast. The data are the
    digits with all labels unless words choose others.
    """
    if command in ("kd-distill", "kd-check") and words and not words[0].startswith("-"):
        words = tuple(choose_all_labels(words))
    main = import_module(f"kd_app.commands.{command.removeprefix('kd-')}").main
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        _as_it_was(),
        patch.object(sys, "argv", [command, *words]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return Ended(code, out.getvalue(), err.getvalue())


def list_epochs(out: str) -> list[str]:
    """The progress lines of trainings in the output of a command; every training prints
    one at least.
    """
    return re.findall(r"^ +\S+: epoch \d+/\d+,.*", out, re.MULTILINE)


@contextmanager
def _as_it_was() -> Iterator[None]:
    """What a command changes in its process is changed back."""
    handler = signal.getsignal(signal.SIGTERM)
    with (
        patch.dict(os.environ, {"WANDB_MODE": "disabled"}),
        patch("kd_app.run.measurement.measure_throughput", quick_speed),
        patch("kd_app.training.timing._NOISE_STEPS", 0),
        patch("kd_app.jobs.compress.measure_latencies", quick_latency),
    ):
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, handler)


def done(*words: str, command: str = "kd-distill") -> str:
    """What a command that has to succeed said."""
    ended = call(*words, command=command)
    assert ended.code == 0, ended.err + ended.out
    return ended.out


def refused(*words: str, command: str = "kd-distill") -> str:
    """The one paragraph of a command that has to be refused, and that leaves the
    working directory as it was.
    """
    before = snapshot(Path.cwd())
    ended = call(*words, command=command)
    assert ended.code == 2, ended.err + ended.out
    assert snapshot(Path.cwd()) == before
    return paragraph(ended.err)


def paragraph(err: str) -> str:
    """What stands on stderr, which has to be one line."""
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    assert len(err) > 30
    return err.strip()


def snapshot(folder: Path) -> dict[str, str]:
    """Every file and folder below `folder` that is not hidden, files with the hash of
    their content.
    """
    found = sorted(
        path
        for path in folder.rglob("*")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        )
        for path in found
    }


def script(command: str) -> str:
    """The installed console script."""
    return str(Path(sys.executable).with_name(command))


def process(*words: str, cwd: Path, command: str = "kd-distill", **environment: str) -> Ended:
    """The installed command in a process of its own in `cwd`, with nobody at the
    keyboard.
    """
    ended = subprocess.run(
        [script(command), *words],
        cwd=cwd,
        env=surroundings(cwd, **environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def surroundings(cwd: Path, **environment: str) -> dict[str, str]:
    """The environment of somebody who has set nothing, is logged in nowhere, and is at
    home above `cwd`.
    """
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WANDB_", "HF_", "KD_", "HYDRA_", "PYTEST_"))
    }
    return {**plain, "HOME": str(cwd.parent), "OMP_NUM_THREADS": "1", **environment}
