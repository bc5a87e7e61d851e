"""Several processes that train one model: started here, or by torchrun's processes on
one machine or several, each told its job as plain data.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

from kd_app.config import RequestError, RunError
from kd_app.stages import write_atomically
from kd_app.training.curve_log import FILE, read_curves
from kd_app.training.distributed.torchrun import Torchrun, read_launch
from kd_app.training.fit import prepare_resume
from kd_app.training.trainer import TrainerSettings

JOB = "job.json"
FAILED, REFUSED = 1, 2
"""Exit codes of a rank: the training failed; the request is wrong."""

POLL = 0.3
"""Seconds between two looks at the ranks."""


class RankHandle(Protocol):
    """One of the processes, wherever it is."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""

    def stop(self, *, kill: bool = False) -> None:
        """Ask it to end, or make it."""


def check_places(settings: TrainerSettings) -> None:
    """Refuse another number of processes than torchrun started, or several machines
    without it (`RequestError`).
    """
    asked, started = settings.world_size, read_launch()
    if started is None and settings.num_nodes > 1:
        raise RequestError(
            f"trainer.num_nodes={settings.num_nodes}, but kd-distill starts processes on this"
            " machine alone. For several machines start it by torchrun on each: torchrun"
            f" --nnodes={settings.num_nodes} --nproc-per-node={settings.devices} -m"
            " kd_app.commands.distill ..."
        )
    if started is not None and asked not in (1, started.world_size):
        raise RequestError(
            f"torchrun started {started.world_size} processes, and"
            f" trainer.devices={settings.devices} x trainer.num_nodes={settings.num_nodes} asks for"
            f" {asked}. Leave trainer.devices out, or make both the same."
        )


def fit_distributed(
    job: dict[str, Any], folder: Path, world_size: int, *, listen: Callable[..., None] | None
) -> None:
    """Train `job` in `folder` with `world_size` processes; the first that fails ends
    all, and its own error is the run's.

    They are children of this process, or under torchrun one child of each of torchrun's
    processes; `folder` is one that all of them see. The curves that rank 0 writes are
    handed to `listen` as they come.
    """
    write_atomically(folder / JOB, json.dumps(job))
    logs = [folder / f"rank{rank}.log" for rank in range(world_size)]
    prepare_resume(folder)
    told = len(list(read_curves(folder / FILE)))
    ranks = _start_ranks(folder, world_size, logs)
    try:
        while any(rank.poll() is None for rank in ranks) and not _list_failed(ranks):
            time.sleep(POLL)
            told = _tell(folder, told, listen)
        failed = _list_failed(ranks)
    finally:
        _end(ranks)
    _tell(folder, told, listen)
    if failed:
        _explain(failed, ranks, logs)
    for path in (folder / JOB, *logs):
        path.unlink(missing_ok=True)


def _start_ranks(folder: Path, world_size: int, logs: Sequence[Path]) -> list[RankHandle]:
    torchrun = Torchrun.from_env()
    address = {
        "MASTER_ADDR": torchrun.address if torchrun else "127.0.0.1",
        "MASTER_PORT": _free_port(),
    }
    if torchrun is None:
        places = [
            {
                "RANK": number,
                "LOCAL_RANK": number,
                "NODE_RANK": 0,
                "WORLD_SIZE": world_size,
                **address,
            }
            for number in range(world_size)
        ]
        return [Child(folder / JOB, place, log) for place, log in zip(places, logs, strict=True)]
    first = Child(folder / JOB, {**torchrun.place(), **address}, logs[0])
    return [
        first,
        *torchrun.start_job(
            {"job": str(folder / JOB), "logs": [str(log) for log in logs], "address": address}
        ),
    ]


def follow() -> None:
    """What all of torchrun's processes do but the first: be one rank of every job that
    the first one asks for, until it ends.
    """
    torchrun = Torchrun.from_env()
    assert torchrun is not None
    for asked in torchrun.iterate_jobs(POLL):
        child = Child(
            Path(asked.job["job"]),
            {**torchrun.place(), **asked.job["address"]},
            Path(asked.job["logs"][torchrun.rank]),
        )
        try:
            while child.poll() is None and not asked.is_stopped():
                time.sleep(POLL)
        finally:
            _end([child])
            asked.report_end(child.poll() or 0)


def _list_failed(ranks: Sequence[RankHandle]) -> list[int]:
    return [number for number, rank in enumerate(ranks) if rank.poll() not in (None, 0)]


def _explain(failed: Sequence[int], ranks: Sequence[RankHandle], logs: Sequence[Path]) -> NoReturn:
    """Raise in the words of the rank that failed first: the one whose log ended first.
    The others only lost their peer.
    """
    first = min(failed, key=lambda number: logs[number].stat().st_mtime_ns)
    words, code = _last_words(logs[first]), ranks[first].poll() or 0
    if code == REFUSED:
        raise RequestError(words)
    ended = f"was killed by signal {-code}" if code < 0 else "failed"
    raise RunError(
        f"Process {first} of {len(ranks)} {ended}: {words} Its whole log: {logs[first]}."
    )


class Child:
    """A rank that this process starts. It ends when this process does."""

    def __init__(self, job: Path, place: Mapping[str, Any], log: Path) -> None:
        threads = os.environ.get("OMP_NUM_THREADS") or max(
            1, (os.cpu_count() or 1) // place["WORLD_SIZE"]
        )
        plain = {
            key: value for key, value in os.environ.items() if not key.startswith("TORCHELASTIC_")
        }
        env = {
            **plain,
            **{key: str(value) for key, value in {**place, "OMP_NUM_THREADS": threads}.items()},
        }
        with log.open("wb") as file:
            output = None if place["RANK"] == 0 else file
            command = [sys.executable, "-m", "kd_app.run.worker", str(job)]
            self._process = subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=output, stderr=file
            )

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        code = self._process.poll()
        if code is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return code

    def stop(self, *, kill: bool = False) -> None:
        """SIGTERM, or SIGKILL."""
        if self.poll() is None:
            (self._process.kill if kill else self._process.terminate)()


def _end(ranks: Sequence[RankHandle]) -> None:
    """Ask those that still run to stop, then make them."""
    for kill, seconds in ((False, 10.0), (True, 5.0)):
        for rank in ranks:
            rank.stop(kill=kill)
        deadline = time.monotonic() + seconds
        while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
            time.sleep(0.05)


def _tell(folder: Path, told: int, listen: Callable[..., None] | None) -> int:
    rows = list(read_curves(folder / FILE))
    for row in rows[told:]:
        if listen:
            listen({k: v for k, v in row.items() if k != "step"}, int(row["step"]))
    return max(told, len(rows))


def _last_words(log: Path) -> str:
    lines = [
        line.strip()
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    return lines[-1] if lines else "it left no word."


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])
