"""What takes long, done once: found again by whoever asks for the same, gone on with
after a kill, made by one process at a time.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

FORMAT = 2
"""Part of every key: raise it when a change makes what older stages hold wrong."""
RECORD = "stage.json"
_HASHED = 2**28
"""Bytes up to which a file's content is compared whenever its stage is found; of a
larger one only the size.
"""


@dataclass(frozen=True)
class Stage:
    """One finished stage: its folder, how long it took to make (seconds, over all
    attempts), and whether this call made it.
    """

    name: str
    path: Path
    seconds: float
    is_new: bool


def hash_value(value: Any) -> str:
    """sha256 of plain data (dicts, lists, strings, numbers, None), independent of the
    order of keys.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that a reader, or a kill at any moment, finds the old content or
    the new one, never a part.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


class Stages:
    """The folder of stages (``stages=``); `remake` names the stages to make anew, once
    in this run.
    """

    def __init__(
        self, root: Path, *, remake: Collection[str] = (), say: Callable[[str], None] = print
    ) -> None:
        self.root = root
        self.say = say
        self._remake = set(remake)
        self._fresh: set[Path] = set()

    def find_or_build(
        self,
        name: str,
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        build: Callable[[Path], None],
    ) -> Stage:
        """The stage `name` of this configuration and these inputs (hashes): found, or
        built.

        `build` fills the folder that it is given, which may hold what an earlier,
        killed attempt left there, and returns when it is whole; only then the folder
        gets its final name. If `build` raises, what it wrote stays for the next
        attempt. A second process that asks for the same waits for the first; a dead
        holder's lock is free. A stage of which a file is not what was written is made
        anew.
        """
        asked, path = self._resolve_stage(name, config, inputs)
        self.root.mkdir(parents=True, exist_ok=True)
        with self._lock(path):
            if name in self._remake and path not in self._fresh:
                self._discard(path)
            self._fresh.add(path)
            if path.is_dir():
                damaged = _find_damaged(path)
                if damaged is None:
                    return Stage(name, path, _read_seconds(path), is_new=False)
                self.say(
                    f"{path.name}: {damaged} is not what was written there; the stage is made anew"
                )
                self._discard(path)
            return self._build(path, asked, build)

    def find(
        self, name: str, *, config: Mapping[str, Any], inputs: Mapping[str, str]
    ) -> Stage | None:
        """The stage that `make` would find; None where it would build one. Nothing is
        written.
        """
        _, path = self._resolve_stage(name, config, inputs)
        whole = name not in self._remake and path.is_dir() and _find_damaged(path) is None
        return Stage(name, path, _read_seconds(path), is_new=False) if whole else None

    def _resolve_stage(
        self, name: str, config: Mapping[str, Any], inputs: Mapping[str, str]
    ) -> tuple[dict[str, Any], Path]:
        """What a stage is made from, and its folder."""
        asked = {"format": FORMAT, "name": name, "config": dict(config), "inputs": dict(inputs)}
        return asked, self.root / f"{name}-{hash_value(asked)[:16]}"

    def _build(self, path: Path, asked: Mapping[str, Any], build: Callable[[Path], None]) -> Stage:
        partial = path.with_name(f"{path.name}.partial")
        partial.mkdir(exist_ok=True)
        before, start, files = _read_seconds(partial), time.monotonic(), {}
        write_atomically(partial / RECORD, json.dumps({**asked, "seconds": before}, indent=1))
        try:
            build(partial)
            files = {name: _hash_content(partial / name) for name in _list_files(partial)}
        finally:
            seconds = before + time.monotonic() - start
            write_atomically(
                partial / RECORD,
                json.dumps({**asked, "seconds": seconds, "files": files}, indent=1),
            )
        os.replace(partial, path)
        return Stage(str(asked["name"]), path, seconds, is_new=True)

    @contextmanager
    def _lock(self, path: Path) -> Iterator[None]:
        """The operating system's lock on a file beside the stage: it ends with its
        holder, however that dies.
        """
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.say(f"{path.name}: another process is making it; waiting for it ...")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _discard(self, path: Path) -> None:
        """Remove a stage and its unfinished attempt; the folder is renamed first, so
        that no half-removed stage is ever found.
        """
        for old in (path, path.with_name(f"{path.name}.partial")):
            if old.is_dir():
                doomed = old.with_name(f".{old.name}.removed")
                shutil.rmtree(doomed, ignore_errors=True)
                os.replace(old, doomed)
                shutil.rmtree(doomed)


def _read_seconds(folder: Path) -> float:
    return float(_record(folder).get("seconds", 0.0))


def _find_damaged(folder: Path) -> str | None:
    """The first file of a finished stage that is gone or not what was written; None
    where all are, or nobody wrote down what they were.
    """
    files = _record(folder).get("files", {})
    return next(
        (
            name
            for name, content in files.items()
            if not (folder / name).is_file() or _hash_content(folder / name) != content
        ),
        None,
    )


def _record(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _list_files(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path != folder / RECORD
    )


def _hash_content(path: Path) -> str:
    """What a file is compared by."""
    size = path.stat().st_size
    return hash_file(path) if size <= _HASHED else f"{size} bytes"
