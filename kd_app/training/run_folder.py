"""The folder of one run: who may write there, and whether it is the same run."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from kd_app.config import RequestError
from kd_app.stages import write_atomically

CONFIG = "config.yaml"
RESULTS = "results.json"
_FREE = ("out", "stages", "remake", "overwrite", "logger", "tags", "test", "data.num_workers", "data.cache")
"""Keys that may differ when a run goes on: they say where and how, not what."""


@contextmanager
def claimed(out: Path, config: Mapping[str, Any], *, overwrite: bool) -> Iterator[None]:
    """Hold `out` for this configuration: made if it is new, taken up if it is the same run, emptied first with `overwrite`.

    Raises `RequestError`: another process works in it, it belongs to another configuration (what differs is listed), or it is no run's folder.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise RequestError(f"Another process works in {str(out)!r}. Wait for it, or choose another folder with out=.") from None
    except OSError as error:
        raise RequestError(f"The folder out={str(out)!r} can't be written: {error.strerror or error}. Choose another one with out=.") from None
    try:
        if overwrite:
            _empty(out)
        _same(out, config)
        write_atomically(out / CONFIG, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        yield
    finally:
        lock.release()


def _empty(out: Path) -> None:
    """Remove what a run left there; refuses a folder that holds something and is no run's."""
    inside = [path for path in out.iterdir() if path.name != ".lock"]
    if inside and not (out / CONFIG).is_file():
        raise RequestError(
            f"overwrite=true, but {str(out)!r} is no run's folder ({inside[0].name} is there, {CONFIG} is not). Nothing was removed. "
            "Choose another out=."
        )
    for path in inside:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _same(out: Path, config: Mapping[str, Any]) -> None:
    path = out / CONFIG
    if not path.is_file():
        return
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise RequestError(
            f"{str(path)!r} can't be read ({type(error).__name__}). Use overwrite=true to start the folder afresh, or another out=."
        ) from None
    differs = differences(before or {}, config)
    if differs:
        listed = "; ".join(f"{key} was {was!r}, now {now!r}" for key, was, now in differs[:12])
        more = f" and {len(differs) - 12} more" if len(differs) > 12 else ""
        raise RequestError(
            f"{str(out)!r} holds a run with another configuration: {listed}{more}. Nothing was written over. "
            "Choose another out=, say the same as before to go on, or use overwrite=true to start the folder afresh."
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """``(key, before, now)`` for every dotted key whose value decides the run and differs."""
    first, second = dict(_flat(before)), dict(_flat(now))
    keys = [key for key in {**first, **second} if not any(key == free or key.startswith(f"{free}.") for free in _FREE)]
    return [(key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)]


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
