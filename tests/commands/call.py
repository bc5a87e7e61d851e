"""The commands as a user calls them: words in, exit code, output and errors out."""

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
class CommandResult:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


def call(*words: str, command: str = "kd-distill") -> CommandResult:
    """Run the main function of `command` in this process. Speed is measured for a
    moment only, and a step is timed once for the forecast. The data are the digits with
    all labels unless words choose others.
    """
    if command in ("kd-distill", "kd-check") and words and not words[0].startswith("-"):
        words = tuple(choose_all_labels(words))
    main = import_module(f"kd_app.commands.{command.removeprefix('kd-')}").main
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        _restore_process(),
        patch.object(sys, "argv", [command, *words]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return CommandResult(code, out.getvalue(), err.getvalue())


def list_epochs(out: str) -> list[str]:
    """Return the progress lines of trainings in the output of a command; every training
    prints one at least.
    """
    return re.findall(r"^ +\S+: epoch \d+/\d+,.*", out, re.MULTILINE)


@contextmanager
def _restore_process() -> Iterator[None]:
    """Change back what a command changes in its process."""
    handler = signal.getsignal(signal.SIGTERM)
    with (
        patch.dict(os.environ, {"WANDB_MODE": "disabled"}),
        patch("kd_app.measurement.classification.measure_throughput", quick_speed),
        patch("kd_app.training.timing._NOISE_STEPS", 0),
        patch("kd_app.jobs.compress.measure_latencies", quick_latency),
    ):
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, handler)


def succeed(*words: str, command: str = "kd-distill") -> str:
    """Run a command that has to succeed, and return its output."""
    result = call(*words, command=command)
    assert result.code == 0, result.err + result.out
    return result.out


def expect_refusal(*words: str, command: str = "kd-distill") -> str:
    """Run a command that has to be refused and to leave the working directory as it
    was, and return its paragraph.
    """
    before = snapshot(Path.cwd())
    result = call(*words, command=command)
    assert result.code == 2, result.err + result.out
    assert snapshot(Path.cwd()) == before
    return paragraph(result.err)


def paragraph(err: str) -> str:
    """Return the content of stderr, which has to be one line."""
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    assert len(err) > 30
    return err.strip()


def snapshot(folder: Path) -> dict[str, str]:
    """Return every file and folder below `folder` that is not hidden, files with the
    hash of their content.
    """
    paths = sorted(
        path
        for path in folder.rglob("*")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        )
        for path in paths
    }


def script(command: str) -> str:
    """The installed console script."""
    return str(Path(sys.executable).with_name(command))


def process(
    *words: str, cwd: Path, command: str = "kd-distill", **environment: str
) -> CommandResult:
    """The installed command in a process of its own in `cwd`, with nobody at the
    keyboard.
    """
    result = subprocess.run(
        [script(command), *words],
        cwd=cwd,
        env=surroundings(cwd, **environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return CommandResult(result.returncode, result.stdout, result.stderr)


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
