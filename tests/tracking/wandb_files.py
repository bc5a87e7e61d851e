"""Reader of the files that Weights & Biases writes offline."""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

_HEADER, _BLOCK = 7, 32_768
_FULL, _LAST = 1, 4


@dataclass
class OfflineRun:
    """One ``.wandb`` file: run, configuration, points, last summary, artifacts, end."""

    records: list[Any]
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def offline_runs(out: Path) -> dict[str, list[OfflineRun]]:
    """Read the runs under ``out/wandb`` by job type, oldest first.

    A resumed run appears once per start, unless a kill left no record. wandb's process
    may still be writing when `finish` returns, so this function waits for the end of
    each run.
    """
    runs: dict[str, list[OfflineRun]] = {}
    paths = sorted(out.glob("wandb/offline-run-*/*.wandb"))
    last = {path.name: path for path in paths}  # named by the run's id
    for path in paths:
        deadline = time.monotonic() + 30
        while (run := _read(path)).exit_code is None and path == last[path.name]:
            assert time.monotonic() < deadline, f"{path} has no end"
            time.sleep(0.05)
        if run.run is not None:
            runs.setdefault(run.run.job_type, []).append(run)
    return runs


def _read(path: Path) -> OfflineRun:
    read = OfflineRun(list(_records(path.read_bytes())))
    for record in read.records:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            read.run = record.run
            _insert(read.config, record.run.config.update)
        elif kind == "config":
            _insert(read.config, record.config.update)
        elif kind == "history":
            read.history.append(_insert({}, record.history.item))
        elif kind == "summary":
            _insert(read.summary, record.summary.update)
        elif kind == "artifact":
            read.artifacts.append(record.artifact)
        elif kind == "metric":
            read.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "exit":
            read.exit_code = record.exit.exit_code
    return read


def _insert(into: dict[str, Any], items: Any) -> dict[str, Any]:
    for item in items:
        into["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return into


def _records(data: bytes) -> Iterator[Any]:
    """Yield the records of a LevelDB log.

    Blocks have 32,768 bytes; records are split into chunks with a header of checksum,
    length and kind.
    """
    at, whole = _HEADER, b""
    while at + _HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        at += _HEADER
        if at + length > len(data):
            return  # still being written
        whole += data[at : at + length]
        at += length
        if kind in (_FULL, _LAST):
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""
