"""The folder of one run: who may write there, whether it is the same run, and what a
refused request leaves behind: nothing.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from kd_app.config import RequestError
from kd_app.config.keys import NESTED_NON_IDENTITY_KEYS, NON_IDENTITY_KEYS
from kd_app.reporting.runs import flatten
from kd_app.run_files import CONFIG, RESULTS
from kd_app.stages import hash_value, write_atomically

_LOCK, _BEFORE = ".lock", ".before"
_FREE = (*NON_IDENTITY_KEYS, *NESTED_NON_IDENTITY_KEYS, "test", "robustness")
"""Keys that may differ when a run goes on: they say where, how and whether, not what.
"""


@contextmanager
def claim_folder(out: Path, config: Mapping[str, Any], *, overwrite: bool) -> Iterator[None]:
    """Hold `out` for this configuration: made if it is new, taken up if it is the same
    run, emptied first with `overwrite`.

    Raises `RequestError`: another process works in it, it belongs to another
    configuration (what differs is listed), or it is no run's folder. When the body
    raises one, the folder is again as it was, and one that was made here is gone.
    """
    _check_owner(out, overwrite=overwrite)
    made = _make_folder(out)
    lock = FileLock(out / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RequestError(
            f"Another process works in {str(out)!r}. Wait for it, or choose another folder with"
            " out=."
        ) from None
    except OSError as error:
        raise RequestError(
            f"The folder out={str(out)!r} can't be written: {error.strerror or error}. Choose"
            " another one with out=."
        ) from None
    try:
        with _undo_on_refusal(out, made, overwrite=overwrite):
            _check_same_run(out, config)
            write_atomically(
                out / CONFIG, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
            )
            yield
    finally:
        lock.release()


def _make_folder(out: Path) -> list[Path]:
    """Make the folder; those of its path that were not there, innermost first."""
    new = [path for path in (out, *out.parents) if not path.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"The folder out={str(out)!r} can't be made: {error.strerror or error}. Choose another"
            " one with out=."
        ) from None
    return new


@contextmanager
def _undo_on_refusal(out: Path, made: Iterable[Path], *, overwrite: bool) -> Iterator[None]:
    """Undo what the body did to the folder when it raises `RequestError`; with
    `overwrite` the body finds it empty.
    """
    before = out / _BEFORE
    shutil.rmtree(before, ignore_errors=True)
    fresh = overwrite or not (out / CONFIG).is_file()
    kept = {path: path.read_bytes() for path in (out / CONFIG, out / RESULTS) if path.is_file()}
    if overwrite:
        before.mkdir()
        _move(_list_visible(out), before)
    try:
        yield
    except RequestError:
        if fresh:
            _remove(_list_visible(out))
        if overwrite:
            _move(_list_visible(before), out)
        for path, content in kept.items():
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)
        shutil.rmtree(before, ignore_errors=True)
        _remove_empty(out, made)
        raise
    finally:
        shutil.rmtree(before, ignore_errors=True)


def _check_owner(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds something and is no run's."""
    inside = _list_visible(out) if out.is_dir() else []
    if inside and not (out / CONFIG).is_file():
        asked = "overwrite=true, but " if overwrite else ""
        raise RequestError(
            f"{asked}{str(out)!r} is no run's folder: {inside[0].name} is there, {CONFIG} is not."
            " Nothing was removed or written. Choose another out=."
        )


def _list_visible(folder: Path) -> list[Path]:
    """What a run leaves there: nothing of it that stays is hidden."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _move(paths: Iterable[Path], folder: Path) -> None:
    for path in paths:
        os.replace(path, folder / path.name)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _remove_empty(out: Path, made: Iterable[Path]) -> None:
    """Remove what was made for a run that never was, as far as it is empty."""
    if not (out / CONFIG).is_file():
        (out / _LOCK).unlink(missing_ok=True)
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def _check_same_run(out: Path, config: Mapping[str, Any]) -> None:
    path = out / CONFIG
    if not path.is_file():
        return
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise RequestError(
            f"{str(path)!r} can't be read ({type(error).__name__}). Use overwrite=true to start the"
            " folder afresh, or another out=."
        ) from None
    differs = find_differences(before or {}, config)
    if differs:
        listed = "; ".join(f"{key} was {was!r}, now {now!r}" for key, was, now in differs[:12])
        more = f" and {len(differs) - 12} more" if len(differs) > 12 else ""
        raise RequestError(
            f"{str(out)!r} holds a run with another configuration: {listed}{more}. Nothing was"
            " written over. Choose another out=, say the same as before to go on, or use"
            " overwrite=true to start the folder afresh."
        )


def find_differences(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """``(key, before, now)`` for every dotted key whose value decides the run and
    differs.
    """
    first, second = dict(flatten(before)), dict(flatten(now))
    keys = [
        key
        for key in {**first, **second}
        if not any(key == free or key.startswith(f"{free}.") for free in _FREE)
    ]
    return [
        (key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)
    ]


def _strip_non_identity(node: Any) -> Any:
    """A group without the keys that say whether a run may be and how often its state is
    saved, not what it is.
    """
    return (
        {key: value for key, value in node.items() if key not in ("license", "checkpoint_steps")}
        if isinstance(node, dict)
        else node
    )


def run_name(config: dict[str, Any]) -> str:
    """A folder's name for a run that names none: what it is, and a hash of what else
    was said.
    """
    decisive = {
        key: _strip_non_identity(value)
        for key, value in config.items()
        if key not in (*NON_IDENTITY_KEYS, "robustness")
    }
    data = str(config["data"].get("name", "data"))
    names = [
        str((config[role] or {}).get("name") or role).split("/")[-1].split(":")[-1]
        for role in ("teacher", "student")
    ]
    return re.sub(r"[^\w.-]+", "-", "-".join([data, *names, hash_value(decisive)[:6]])).lstrip(".")
