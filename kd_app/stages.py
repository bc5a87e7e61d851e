"""Cache of long-running steps: keyed by config and input hashes, resumable, safe across
processes.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NotRequired

from filelock import FileLock, Timeout
from typing_extensions import TypedDict

from kd_app.config import RequestError
from kd_app.config.records import load_record, parse_record
from kd_app.digest import SELF, hash_file, hash_value, is_sealed, seal
from kd_app.files import (
    PARTIAL,
    follow_umask,
    list_regular_files,
    make_folder,
    remove,
    remove_links,
    replace_file,
)

__all__ = [
    "FORMAT",
    "RECORD",
    "Stage",
    "StagePart",
    "Stages",
    "StoredStage",
    "hash_content",
    "write_atomically",
]

FORMAT = 4
"""Part of every key; a change that invalidates older stages must increase the number.
"""
RECORD = "stage.json"
_KEYS = ("format", "name", "config", "inputs")
"""In the record: what the name of the folder is the hash of."""
_PART = 2**26
"""Files above this size are hashed in parts of this size, by several threads."""
_BLOCK = 2**20
_ABANDONED_SECONDS = 86400.0
"""Temporary files of this age beside the stages are of no running process."""


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    seconds: build time over all attempts. is_new: this call built the stage.
    """

    name: str
    path: Path
    seconds: float
    is_new: bool


class StagePart(NamedTuple):
    """The configuration, the inputs and the builder of one of several stages of the
    same name.
    """

    config: dict[str, Any]
    inputs: dict[str, str]
    build: Callable[[Path], None]


@dataclass(frozen=True)
class StoredStage:
    """A stage in the folder of the stages, finished or not.

    name: that of its folder when it is finished. changed: time of the last change of a
    file, in seconds since the epoch.
    """

    name: str
    path: Path
    is_finished: bool
    size_bytes: int
    changed: float


def hash_content(path: Path) -> str:
    """A hash of a file's content: its sha256, or for a large file the sha256 of the
    sha256 of each part.

    In one process, a file is read again only if its size or times have changed.
    """
    status = path.stat()
    size, changed = status.st_size, status.st_ctime_ns
    key = (status.st_dev, status.st_ino, size, status.st_mtime_ns, changed)
    if key in _HASHES:
        return _HASHES[key]
    content = hash_file(path) if size <= _PART else _hash_in_parts(path, size)
    if time.time_ns() - changed > _SETTLED_NS:
        _HASHES[key] = content
    return content


_HASHES: dict[tuple[int, ...], str] = {}
_SETTLED_NS = 10**9
"""Clocks of file systems are coarse: a second write to a file could have the time of
the first one. So only hashes of files that are older are kept.
"""


def _hash_in_parts(path: Path, size: int) -> str:
    def hash_part(start: int) -> bytes:
        digest, end = hashlib.sha256(), min(start + _PART, size)
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while start < end and (block := file.read(min(_BLOCK, end - start))):
                digest.update(block)
                start += len(block)
        return digest.digest()

    with ThreadPoolExecutor(max_workers=8) as pool:
        parts = pool.map(hash_part, range(0, size, _PART))
        return f"parts {hashlib.sha256(b''.join(parts)).hexdigest()}"


def write_atomically(path: Path, text: str) -> None:
    """Write `text`; readers see the old or the new content, even after a kill."""
    with replace_file(path) as file:
        file.write(text.encode())


def sweep_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders (``.<name>.partial``) of killed processes
    from a folder of kd_app that this process has locked.
    """
    _remove_all(folder.rglob(f".*{PARTIAL}"))


def _remove_all(paths: Iterable[Path]) -> None:
    """Remove files and folders as far as possible."""
    for path in list(paths):
        with suppress(OSError):
            remove(path)


class Stages:
    """The stages in the folder `root` (``stages=``).

    remake: names of stages to rebuild, once for each object.
    """

    def __init__(
        self, root: Path, *, remake: Collection[str] = (), say: Callable[[str], None] = print
    ) -> None:
        self.root = root.absolute()
        self.say = say
        self._remake = set(remake)
        self._is_swept = False
        self._visited: set[Path] = set()

    def find_or_build(
        self,
        name: str,
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        build: Callable[[Path], None],
    ) -> Stage:
        """Find the stage `name` of this `config` and these `inputs` (hashes), or build
        it.

        `build` fills a folder, which may contain the files of an earlier, failed
        attempt. When `build` returns, the folder gets its final name, and its files the
        rights that the umask allows. If `build` raises, the files remain for the next
        attempt. Other processes that need the same stage wait. A stage is rebuilt if
        one of its files has changed, or if it holds a file that its record does not
        name. A finished stage of another user needs no right to write.
        """
        stage = self._find_or_build(name, config, inputs, build, waits=True)
        assert stage is not None
        return stage

    def build_unless_busy(
        self,
        name: str,
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        build: Callable[[Path], None],
    ) -> Stage | None:
        """As `find_or_build`, but None if another process is building the stage."""
        return self._find_or_build(name, config, inputs, build, waits=False)

    def _find_or_build(
        self,
        name: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        build: Callable[[Path], None],
        *,
        waits: bool,
    ) -> Stage | None:
        key, path = self._resolve_stage(name, config, inputs)
        is_remade = name in self._remake and path not in self._visited
        if not is_remade and path.is_dir() and _find_change(path) is None:
            return self._open(name, path)
        self.root.mkdir(parents=True, exist_ok=True)
        if not self._is_swept:
            self._sweep()
        with self._lock(path, waits=waits) as is_locked:
            if not is_locked:
                return None
            if is_remade:
                self._discard(path)
            if path.is_dir():
                change = _find_change(path)
                if change is None:
                    return self._open(name, path)
                self.say(f"{path.name}: {change} since the stage was built; the stage is rebuilt")
                self._discard(path)
            self._visited.add(path)
            return self._build(path, key, build)

    def _open(self, name: str, path: Path) -> Stage:
        self._visited.add(path)
        return Stage(name, path, _read_seconds(path), is_new=False)

    def find(
        self, name: str, *, config: Mapping[str, Any], inputs: Mapping[str, str]
    ) -> Stage | None:
        """Find a stage; None if `find_or_build` would build the stage."""
        _, path = self._resolve_stage(name, config, inputs)
        if name in self._remake or not path.is_dir() or _find_change(path) is not None:
            return None
        return Stage(name, path, _read_seconds(path), is_new=False)

    def list_stored(self) -> list[StoredStage]:
        """All stages in the folder, finished or not, without what is provably no stage:
        its record must be whole, and its name the hash of the record.
        """
        stored = (_read_stored(path) for path in sorted(self.root.glob("[!.]*-*")))
        return [stage for stage in stored if stage is not None]

    def free(self, stage: StoredStage) -> bool:
        """Remove a stage; False if another process uses or has changed it."""
        path = self.root / stage.name
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        try:
            if _read_stored(stage.path) != stage:
                return False
            self._remove(stage.path)
            return True
        finally:
            lock.release()

    def _resolve_stage(
        self, name: str, config: Mapping[str, Any], inputs: Mapping[str, str]
    ) -> tuple[dict[str, Any], Path]:
        """The key of a stage, and the folder named after the hash of the key."""
        key = {"format": FORMAT, "name": name, "config": dict(config), "inputs": dict(inputs)}
        return key, self.root / _name_folder(key)

    def _build(self, path: Path, key: Mapping[str, Any], build: Callable[[Path], None]) -> Stage:
        partial = path.with_name(f"{path.name}{PARTIAL}")
        make_folder(partial)
        remove_links(partial)
        sweep_leftovers(partial)
        before, start = _read_seconds(partial), time.monotonic()
        _write_record(partial, {**key, "seconds": before})
        try:
            build(partial)
            follow_umask(partial, like=partial / RECORD)
            files = {name: hash_content(partial / name) for name in _list_files(partial)}
        except BaseException:
            seconds = before + time.monotonic() - start
            with suppress(OSError):  # the disk may be full
                _write_record(partial, {**key, "seconds": seconds, "files": {}})
            raise
        seconds = before + time.monotonic() - start
        _write_record(partial, {**key, "seconds": seconds, "files": files})
        os.replace(partial, path)
        return Stage(str(key["name"]), path, seconds, is_new=True)

    @contextmanager
    def _lock(self, path: Path, *, waits: bool) -> Iterator[bool]:
        """Lock a stage between processes; yields False if another one has locked it and
        this one does not wait.
        """
        # The operating system releases a file lock when the process ends for any
        # reason.
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not waits:
                yield False
                return
            self.say(f"{path.name}: another process is building this stage; waiting ...")
            lock.acquire()
        try:
            yield True
        finally:
            lock.release()

    def _sweep(self) -> None:
        """Remove what killed processes left beside the stages, where nothing is locked:
        only what is old.
        """
        self._is_swept, latest = True, time.time() - _ABANDONED_SECONDS
        for pattern in (f".*{PARTIAL}", ".*.removed"):
            _remove_all(path for path in self.root.glob(pattern) if path.lstat().st_mtime < latest)

    def _discard(self, path: Path) -> None:
        """Remove a stage and its unfinished attempt."""
        for old in (path, path.with_name(f"{path.name}{PARTIAL}")):
            if old.exists() or old.is_symlink():
                self._remove(old)

    def _remove(self, path: Path) -> None:
        # renamed first, so that a kill leaves no partly removed stage under the final
        # name
        removed = path.with_name(f".{path.name}.removed")
        remove(removed)
        os.replace(path, removed)
        remove(removed)


def _name_folder(key: Mapping[str, Any]) -> str:
    return f"{key['name']}-{hash_value(key)[:16]}"


def _read_stored(path: Path) -> StoredStage | None:
    """The stage in a folder; None if the folder is not provably a stage."""
    if path.is_symlink() or not path.is_dir():
        return None
    regular, _ = list_regular_files(path)
    record = _read_record(path) if RECORD in regular else {}
    name = path.name.removesuffix(PARTIAL)
    if not set(_KEYS) <= set(record) or _name_folder({key: record[key] for key in _KEYS}) != name:
        return None
    files = [(path / each).stat() for each in regular]
    return StoredStage(
        name=name,
        path=path,
        is_finished=path.name == name,
        size_bytes=sum(file.st_size for file in files),
        changed=max(file.st_mtime for file in files),
    )


class _Record(TypedDict):
    """What is read of a stage's record."""

    seconds: float
    files: NotRequired[dict[str, str]]


def _read_seconds(folder: Path) -> float:
    return float(_read_record(folder).get("seconds", 0.0))


def _find_change(folder: Path) -> str | None:
    """What differs from the record of a finished stage; None if nothing does.

    Hidden files that are not recorded, which no job reads, do not count: systems put
    them into folders.
    """
    regular, others = list_regular_files(folder)
    present = set(regular)
    files = _read_files(folder) if RECORD in present else None
    if files is None:
        return f"{RECORD} is missing or changed"
    for name, content in files.items():
        if name not in present or hash_content(folder / name) != content:
            return f"{name} is missing or changed"
    added = [name for name in (*regular, *others) if name not in files and name != RECORD]
    visible = (name for name in added if not any(part[0] == "." for part in name.split("/")))
    return next((f"{name} was added" for name in visible), None)


def _read_files(folder: Path) -> dict[str, str] | None:
    """The hash of each file of a finished stage; None if the record is damaged."""
    files = _read_record(folder).get("files")
    return files if isinstance(files, dict) else None


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    write_atomically(folder / RECORD, json.dumps(seal(record), indent=1))


def _read_record(folder: Path) -> dict[str, Any]:
    """The record of a stage; empty if the record is missing or damaged."""
    try:
        record = dict(load_record(folder / RECORD, expected=""))
        is_whole = is_sealed(record)
        content = {key: value for key, value in record.items() if key != SELF}
        parse_record(folder / RECORD, content, _Record, expected="")
    except (RequestError, TypeError, ValueError):
        return {}
    return record if is_whole else {}


def _list_files(folder: Path) -> list[str]:
    """The files that the record names. A link could change after it was recorded."""
    regular, _ = list_regular_files(folder)
    return [name for name in regular if name != RECORD]
