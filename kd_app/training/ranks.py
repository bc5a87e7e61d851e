"""Several processes that train one model: started here, one a device, each told its job as plain data."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from kd_app.config import RequestError, RunError
from kd_app.stages import write_atomically
from kd_app.training.curves import FILE, read_curves
from kd_app.training.fit import resumed

JOB = "job.json"
FAILED, REFUSED = 1, 2
"""Exit codes of a rank: the training failed; the request is wrong."""

_POLL = 0.3


def fit_on_ranks(job: dict[str, Any], folder: Path, world_size: int, *, listen: Callable[..., None] | None) -> None:
    """Train `job` in `folder` with `world_size` processes of this machine; the first that fails ends all, and its own error is the run's.

    The curves that rank 0 writes are handed to `listen` as they come.
    """
    write_atomically(folder / JOB, json.dumps(job))
    port = _free_port()
    logs = [folder / f"rank{rank}.log" for rank in range(world_size)]
    resumed(folder)
    told = len(list(read_curves(folder / FILE)))
    ranks = [_start(folder / JOB, rank, world_size, port, log) for rank, log in enumerate(logs)]
    try:
        while any(rank.poll() is None for rank in ranks) and not _failed(ranks):
            time.sleep(_POLL)
            told = _tell(folder, told, listen)
        failed = _failed(ranks)
    finally:
        _end(ranks)
    _tell(folder, told, listen)
    if failed:
        _explain(failed, ranks, logs)
    for path in (folder / JOB, *logs):
        path.unlink(missing_ok=True)


def _failed(ranks: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    return [number for number, rank in enumerate(ranks) if rank.poll() not in (None, 0)]


def _explain(failed: Sequence[int], ranks: Sequence[subprocess.Popen[bytes]], logs: Sequence[Path]) -> NoReturn:
    """Raise in the words of the rank that failed first: the one whose log ended first. The others only lost their peer."""
    first = min(failed, key=lambda number: logs[number].stat().st_mtime_ns)
    words = _last_words(logs[first])
    if ranks[first].returncode == REFUSED:
        raise RequestError(words)
    ended = f"was killed by signal {-ranks[first].returncode}" if ranks[first].returncode < 0 else "failed"
    raise RunError(f"Process {first} of {len(ranks)} {ended}: {words} Its whole log: {logs[first]}.")


def _start(job: Path, rank: int, world_size: int, port: int, log: Path) -> subprocess.Popen[bytes]:
    env = {
        **os.environ,
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // world_size)),
    }
    with log.open("wb") as file:
        output = None if rank == 0 else file
        command = [sys.executable, "-m", "kd_app.training.rank", str(job)]
        return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=output, stderr=file)


def _end(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Ask those that still run to stop, then make them."""
    for rank in ranks:
        if rank.poll() is None:
            rank.terminate()
    deadline = time.monotonic() + 10
    for rank in ranks:
        try:
            rank.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()
        assert rank.stdin is not None
        rank.stdin.close()


def _tell(folder: Path, told: int, listen: Callable[..., None] | None) -> int:
    rows = list(read_curves(folder / FILE))
    for row in rows[told:]:
        if listen:
            listen({k: v for k, v in row.items() if k != "step"}, int(row["step"]))
    return max(told, len(rows))


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it left no word."


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
