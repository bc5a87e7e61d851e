"""Launch the ranks that train one model together.

The ranks are child processes of this process, or of torchrun's processes on one or
several machines. Each rank reads the job from a JSON file.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

from kd_app.callbacks.curve_log import FILE, read_curves
from kd_app.config import RequestError, RunError
from kd_app.distributed.torchrun import Torchrun, read_launch
from kd_app.signals import STOPPED, name_signal
from kd_app.stages import write_atomically
from kd_app.training.fit import prepare_resume
from kd_app.training.trainer import TrainerSettings

JOB = "job.json"
FAILED, REFUSED = 1, 2
"""Exit codes of a rank: the training failed; the request is wrong."""
POLL_SECONDS = 0.3
_STOP_SECONDS, _FAILURE_SECONDS, _FOLLOWER_SECONDS = 60.0, 1.0, 30.0
"""For ranks that save their state after a signal, for the peers of a failed rank, and
for a rank of torchrun, which waits as long itself.
"""


class RankHandle(Protocol):
    """The process of one rank, on this machine or another."""

    def read_exit_code(self) -> int | None:
        """The exit code of the process; None while the process runs."""

    def stop(self, *, kill: bool = False) -> None:
        """Terminate the process, or kill it."""


def check_places(settings: TrainerSettings) -> None:
    """Raise `RequestError` if torchrun started another number of processes, and for
    several machines without torchrun.
    """
    launch = read_launch()
    if launch is None and settings.num_nodes > 1:
        raise RequestError(
            f"trainer.num_nodes={settings.num_nodes}, but kd-distill starts processes on this"
            " machine only. To use several machines, start torchrun on each of them: torchrun"
            f" --nnodes={settings.num_nodes} --nproc-per-node={settings.devices} -m"
            " kd_app.commands.distill ..."
        )
    if launch is not None and settings.world_size not in (1, launch.world_size):
        raise RequestError(
            f"torchrun started {launch.world_size} processes, but"
            f" trainer.devices={settings.devices} x trainer.num_nodes={settings.num_nodes} is"
            f" {settings.world_size}. Remove trainer.devices, or set equal numbers."
        )


def fit_distributed(
    job: dict[str, Any], folder: Path, world_size: int, *, listen: Callable[..., None] | None
) -> None:
    """Train `job` in `folder` with `world_size` processes.

    The ranks are children of this process, or under torchrun one child of each of
    torchrun's processes. All machines must share `folder`. New points of the curves are
    passed to `listen`. A failed rank stops all ranks: raises `RequestError` or
    `RunError` with the message of that rank.
    """
    text = json.dumps(job)
    write_atomically(folder / JOB, text)
    sha256 = hash_job(text.encode())
    logs = [folder / f"rank{rank}.log" for rank in range(world_size)]
    prepare_resume(folder)
    points = len(list(read_curves(folder / FILE)))
    ranks = _start_ranks(folder, sha256, world_size, logs)
    seconds = _STOP_SECONDS
    try:
        while _is_any_running(ranks) and not _list_failed(ranks):
            time.sleep(POLL_SECONDS)
            points = _pass_points(folder, points, listen)
        failed = _list_failed(ranks)
        seconds = _FAILURE_SECONDS
    finally:
        _end(ranks, seconds)
    _pass_points(folder, points, listen)
    if failed:
        _raise_failure(failed, ranks, logs)
    for path in (folder / JOB, *logs):
        path.unlink(missing_ok=True)


def hash_job(content: bytes) -> str:
    """The sha256 of a job's file. It is handed to each rank: the folder of the stage
    may be shared with other users, and a job names code.
    """
    return hashlib.sha256(content).hexdigest()


def _start_ranks(
    folder: Path, sha256: str, world_size: int, logs: Sequence[Path]
) -> list[RankHandle]:
    torchrun = Torchrun.from_env()
    address = {
        "MASTER_ADDR": torchrun.address if torchrun else "127.0.0.1",
        "MASTER_PORT": _find_free_port(),
    }
    if torchrun is None:
        return [
            ChildRank(
                folder / JOB,
                sha256,
                {
                    "RANK": rank,
                    "LOCAL_RANK": rank,
                    "NODE_RANK": 0,
                    "WORLD_SIZE": world_size,
                    **address,
                },
                log,
            )
            for rank, log in zip(range(world_size), logs, strict=True)
        ]
    first = ChildRank(folder / JOB, sha256, {**torchrun.build_rank_env(), **address}, logs[0])
    job = {
        "job": str(folder / JOB),
        "sha256": sha256,
        "logs": [str(log) for log in logs],
        "address": address,
    }
    return [first, *torchrun.start_job(job)]


def run_follower() -> None:
    """Run one rank of every job that torchrun's first process starts, until that
    process sends the end.
    """
    torchrun = Torchrun.from_env()
    assert torchrun is not None
    for rank_job in torchrun.iterate_jobs(POLL_SECONDS):
        child = ChildRank(
            Path(rank_job.job["job"]),
            rank_job.job["sha256"],
            {**torchrun.build_rank_env(), **rank_job.job["address"]},
            Path(rank_job.job["logs"][torchrun.rank]),
        )
        try:
            while child.read_exit_code() is None and not rank_job.is_stopped():
                time.sleep(POLL_SECONDS)
        finally:
            _end([child], _FOLLOWER_SECONDS)
            rank_job.report_end(child.read_exit_code() or 0)


def _is_any_running(ranks: Sequence[RankHandle]) -> bool:
    return any(rank.read_exit_code() is None for rank in ranks)


def _list_failed(ranks: Sequence[RankHandle]) -> list[int]:
    return [number for number, rank in enumerate(ranks) if rank.read_exit_code() not in (None, 0)]


def _raise_failure(
    failed: Sequence[int], ranks: Sequence[RankHandle], logs: Sequence[Path]
) -> NoReturn:
    """Raise the error of the rank that failed first."""
    # Its log ends first. The other ranks fail later, because they lost a peer.
    first = min(failed, key=lambda number: logs[number].stat().st_mtime_ns)
    message, code = _read_last_line(logs[first]), ranks[first].read_exit_code() or 0
    if code == REFUSED:
        raise RequestError(message)
    verb = f"was killed by signal {-code}" if code < 0 else "failed"
    if code in STOPPED:
        raise RunError(
            f"Process {first} of {len(ranks)} was stopped by {name_signal(code - 128)}, and with it"
            " the training. Its state is saved: repeat the command to resume."
        )
    raise RunError(
        f"Process {first} of {len(ranks)} {verb}: {message} Its full log is {logs[first]}."
    )


class ChildRank:
    """A rank in a child process, which ends when this process ends."""

    def __init__(self, job: Path, sha256: str, rank_env: Mapping[str, Any], log: Path) -> None:
        cores_per_rank = max(1, (os.cpu_count() or 1) // rank_env["WORLD_SIZE"])
        threads = os.environ.get("OMP_NUM_THREADS") or cores_per_rank
        # With torchrun's variables, torch would expect torchrun to host the store of
        # the new process group.
        env = {
            key: value for key, value in os.environ.items() if not key.startswith("TORCHELASTIC_")
        }
        env |= {key: str(value) for key, value in rank_env.items()}
        env["OMP_NUM_THREADS"] = str(threads)
        with log.open("wb") as file:
            output = None if rank_env["RANK"] == 0 else file
            command = [sys.executable, "-m", "kd_app.run.worker", str(job), sha256]
            self._process = subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=output, stderr=file
            )

    def read_exit_code(self) -> int | None:
        """The exit code of the process; None while the process runs."""
        code = self._process.poll()
        if code is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return code

    def stop(self, *, kill: bool = False) -> None:
        """Send SIGTERM, or SIGKILL."""
        if self.read_exit_code() is None:
            (self._process.kill if kill else self._process.terminate)()


def _end(ranks: Sequence[RankHandle], seconds: float) -> None:
    """Terminate the ranks that still run, and kill those that need more `seconds`."""
    for kill, patience in ((False, seconds), (True, 5.0)):
        for rank in ranks:
            rank.stop(kill=kill)
        deadline = time.monotonic() + patience
        while _is_any_running(ranks) and time.monotonic() < deadline:
            time.sleep(0.05)


def _pass_points(folder: Path, start: int, listen: Callable[..., None] | None) -> int:
    """Pass the points of the curves from number `start` on to `listen`; return the
    number of points.
    """
    rows = list(read_curves(folder / FILE))
    for row in rows[start:]:
        if listen:
            listen({k: v for k, v in row.items() if k != "step"}, int(row["step"]))
    return max(start, len(rows))


def _read_last_line(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "the log is empty."


def _find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])
