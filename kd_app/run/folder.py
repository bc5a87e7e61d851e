"""The folder of one run: locking, the check that the configuration is the same, and the
undo of a refused job.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kd_app.config import RequestError
from kd_app.config.keys import NESTED_NON_IDENTITY_KEYS, NON_IDENTITY_KEYS
from kd_app.config.plain_yaml import dump_yaml
from kd_app.config.recorded_files import check_recorded
from kd_app.config.records import parse_with, read_record
from kd_app.digest import hash_value
from kd_app.files import is_outside, list_regular_files, remove
from kd_app.reporting.runs import flatten
from kd_app.run.content import is_run, list_left
from kd_app.run_files import CONFIG, READ, RESULTS
from kd_app.specs.saved_config import fill_defaults
from kd_app.stages import RECORD, sweep_leftovers, write_atomically

_LOCK, _BACKUP = ".lock", ".before"
_FREE_KEYS = (*NON_IDENTITY_KEYS, *NESTED_NON_IDENTITY_KEYS, "test", "robustness")
"""Keys that may change when a run is resumed: they do not decide what is trained."""
_WRITTEN = (*READ, "wandb", "tensorboard", "mlflow")
_MAX_LISTED = 12


@contextmanager
def claim_folder(out: Path, config: Mapping[str, Any], *, overwrite: bool) -> Iterator[None]:
    """Lock the folder `out` for a job with this configuration.

    A new folder is created; a folder of the same run is resumed; with `overwrite` what
    a run has left in the folder is removed first, and nothing else.

    Raises `RequestError` if another process uses the folder, the folder belongs to
    another configuration (the differences are listed) or to a changed one, or is not a
    run folder. If the body raises `RequestError`, the folder is restored, or removed if
    it was created here. If it leaves results.json as it is, the configuration of those
    results stays, too.
    """
    _check_owner(out, overwrite=overwrite)
    new_folders = _make_folder(out)
    lock = FileLock(out / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RequestError(
            f"Another process works in {str(out)!r}. Wait until it has finished, or choose another"
            " folder with out=."
        ) from None
    except OSError as error:
        raise RequestError(
            f"The folder out={str(out)!r} can't be written: {error.strerror or error}. Choose"
            " another folder with out=."
        ) from None
    try:
        with _restore_on_refusal(out, new_folders, overwrite=overwrite):
            _check_same_run(out, config)
            sweep_leftovers(out)
            _unlink_outward(out)
            write_atomically(out / CONFIG, dump_yaml(dict(config)))
            yield
    finally:
        lock.release()


def _unlink_outward(out: Path) -> None:
    """Remove the links that lead out of the folder from where the run and its trackers
    write.
    """
    for path in (out / name for name in _WRITTEN):
        links = [""] if path.is_symlink() else list_regular_files(path)[1]
        for link in (path / each for each in links):
            if link.is_symlink() and is_outside(link, out):
                link.unlink()


def check_out(out: Path, stages: Path, run: Path | None = None) -> None:
    """Raise `RequestError` if `out` is the folder of the stages or lies in it, or if it
    is the folder of the finished `run` or a link that leads out of that.
    """
    inner, outer = out.resolve(), stages.resolve()
    if run is not None and inner == run.resolve():
        raise RequestError(
            f"out={str(out)!r} is the folder of the run itself, whose results would be lost."
            " Choose another folder with out=."
        )
    is_named_in_run = run is not None and Path(os.path.abspath(out)).is_relative_to(
        os.path.abspath(run)
    )
    if run is not None and is_named_in_run and is_outside(out, run):
        raise RequestError(
            f"out={str(out)!r} is a link out of the run's folder, to {str(inner)!r}. A run's folder"
            f" may be somebody else's, so links in it are not followed. Name the folder itself:"
            f" out={inner}."
        )
    if inner == outer or outer in inner.parents:
        raise RequestError(
            f"out={str(out)!r} {'is' if inner == outer else 'lies in'} the folder of the cached"
            f" stages, stages={str(stages)!r}, where only stages belong. Choose another folder with"
            " out= or stages=."
        )


def check_stages(stages: Path) -> None:
    """Raise `RequestError` if the folder of the stages can't be created or written.

    A folder of another user that holds finished stages may be read only: the job can
    need no others.
    """
    path = stages.absolute()
    existing = next(each for each in (path, *path.parents) if each.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return
    if existing == path and any(path.glob(f"*/{RECORD}")):
        return
    reason = (
        "permission denied: this user may not write to it" if existing.is_dir() else "it is a file"
    )
    raise RequestError(
        f"The folder of the cached stages, stages={str(stages)!r}, can't be written"
        f" ({str(existing)!r}: {reason}). Set stages= to another folder."
    )


def _make_folder(out: Path) -> list[Path]:
    """Create the folder; the folders of its path that are new, innermost first."""
    new = [path for path in (out, *out.parents) if not path.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"The folder out={str(out)!r} can't be created: {error.strerror or error}. Choose"
            " another folder with out=."
        ) from None
    return new


@contextmanager
def _restore_on_refusal(
    out: Path, new_folders: Iterable[Path], *, overwrite: bool
) -> Iterator[None]:
    """Restore the folder if the body raises `RequestError`; with `overwrite` the body
    starts without the files of the earlier run.
    """
    backup = out / _BACKUP
    remove(backup)
    is_fresh = overwrite or not (out / CONFIG).is_file()
    originals = {
        path: path.read_bytes()
        for path in (out / CONFIG, out / RESULTS)
        if path.is_file() and not is_outside(path, out)
    }
    if overwrite:
        left = list_left(out)
        backup.mkdir()
        _move(left, backup)
    others = set(_list_visible(out))
    try:
        yield
        results = out / RESULTS
        is_kept = results in originals and results.is_file()
        if is_kept and results.read_bytes() == originals[results]:
            _write_back(originals)
    except RequestError:
        if is_fresh:
            _remove(path for path in _list_visible(out) if path not in others)
        if overwrite:
            _move(_list_visible(backup), out)
        _write_back(originals)
        shutil.rmtree(backup, ignore_errors=True)
        _remove_empty(out, new_folders)
        raise
    finally:
        shutil.rmtree(backup, ignore_errors=True)


def _write_back(originals: Mapping[Path, bytes]) -> None:
    for path, content in originals.items():
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)


def _check_owner(out: Path, *, overwrite: bool) -> None:
    """Raise `RequestError` for a folder with files that is not a run folder."""
    files = _list_visible(out) if out.is_dir() else []
    if not files:
        return
    override = "overwrite=true, but " if overwrite else ""
    if not (out / CONFIG).is_file():
        raise RequestError(
            f"{override}{str(out)!r} is not a run folder: it contains {files[0].name}, but no"
            f" {CONFIG}. Nothing was deleted or written. Choose another folder with out=."
        )
    if overwrite and not is_run(out):
        raise RequestError(
            f"{override}{str(out)!r} is not a run folder: its {CONFIG} was not written by kd_app."
            " Nothing was deleted or written. Choose another folder with out=."
        )


def _list_visible(folder: Path) -> list[Path]:
    """The files and folders of a run; the hidden ones are locks and temporary files."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _move(paths: Iterable[Path], folder: Path) -> None:
    for path in paths:
        os.replace(path, folder / path.name)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _remove_empty(out: Path, new_folders: Iterable[Path]) -> None:
    """Remove the empty folders that were created for a refused run."""
    if not (out / CONFIG).is_file():
        (out / _LOCK).unlink(missing_ok=True)
        with suppress(OSError):
            for folder in new_folders:
                folder.rmdir()


def _check_same_run(out: Path, config: Mapping[str, Any]) -> None:
    path = out / CONFIG
    if not path.is_file():
        return
    check_recorded(path)
    expected = (
        "Choose another folder with out=; a folder with valid results may also be started over"
        " with overwrite=true."
    )
    before = read_record(path, dict[str, Any], expected=expected)
    differences = find_differences(before, config)
    if differences:
        keys = {key for key, _, _ in differences}
        filled = find_differences(
            parse_with(path, lambda: fill_defaults(before), expected=expected), config
        )
        differences = [each for each in filled if each[0] in keys]
    if differences:
        listed = "; ".join(
            f"{key} was {old!r}, now {new!r}" for key, old, new in differences[:_MAX_LISTED]
        )
        if len(differences) > _MAX_LISTED:
            listed += f" and {len(differences) - _MAX_LISTED} more"
        raise RequestError(
            f"{str(out)!r} holds a run with another configuration: {listed}. Nothing was"
            " overwritten. Choose another folder with out=, repeat the original command to resume"
            " the run, or start over with overwrite=true."
            f"{_explain_longer_training(out, differences)}"
        )


def _explain_longer_training(out: Path, differences: Iterable[tuple[str, Any, Any]]) -> str:
    """How to train for more epochs, if only the number of epochs differs."""
    if not {key for key, _, _ in differences} <= {"trainer.max_epochs", "teacher.max_epochs"}:
        return ""
    return (
        " A training can't be extended, because its learning rate has followed a schedule to the"
        f" last epoch. To train the student of {out} further, start from it with"
        f" student.checkpoint={out} and another out=. To train a new student for longer, use"
        " another out= alone; with the same teacher.* settings, the teacher is reused."
    )


def find_differences(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """``(key, before, now)`` for every dotted key that identifies the run and has
    another value.
    """
    old, new = dict(flatten(before)), dict(flatten(now))
    keys = [
        key
        for key in {**old, **new}
        if not any(key == free or key.startswith(f"{free}.") for free in _FREE_KEYS)
    ]
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def _strip_non_identity(node: Any) -> Any:
    """A group without license and checkpoint interval, which do not identify a run."""
    if not isinstance(node, dict):
        return node
    return {key: value for key, value in node.items() if key not in ("license", "checkpoint_steps")}


def build_run_name(config: dict[str, Any]) -> str:
    """The folder name of a run without ``out=``: data, teacher and student, and a hash
    of the configuration.
    """
    identity = {
        key: _strip_non_identity(value)
        for key, value in config.items()
        if key not in (*NON_IDENTITY_KEYS, "robustness")
    }
    data = str(config["data"].get("name", "data"))
    names = [
        str((config[role] or {}).get("name") or role).split("/")[-1].split(":")[-1]
        for role in ("teacher", "student")
    ]
    name = "-".join([data, *names, hash_value(identity)[:6]])
    return re.sub(r"[^\w.-]+", "-", name).lstrip(".")
