"""Failures of a user's own code: one paragraph that names the class and the method."""

import errno
import os
import re
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import Any, Final

from kd_app.config.errors import RequestError, RunError, take_first_line
from kd_app.config.memory import is_out_of_memory

_KNOWN: Final = frozenset({"kd_app", "hydra_plugins", "timm", "lightning", "torch"})
"""Packages whose classes a configuration may name and that are not the user's."""
_PACKAGE: Final = Path(__file__).parents[1]
_PATHS: Final = sysconfig.get_paths()
_LIBRARIES: Final = tuple(
    str(Path(path).resolve()) + os.sep
    for path in (
        *(_PATHS[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")),
        str(_PACKAGE),
        str(_PACKAGE.parent / "hydra_plugins"),
    )
)
"""Folders whose code is not the user's: Python, installed packages, and kd_app."""
_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""A disk that is full or can't be written is no fault of the code that writes."""
_WORKER: Final = re.compile(r"Caught (\w+) in \w+ worker process")
_WORKER_FRAME: Final = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


@contextmanager
def explain_own_error(config: Mapping[str, Any]) -> Iterator[None]:
    """Raise `RunError` with the paragraph if a user's own code fails in the body: code
    that is not installed, or in a package that a ``_target_`` of `config` names.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if (failure := describe_own_error(error, _list_packages(config))) is None:
            raise
        raise RunError(failure) from error


def _list_packages(node: Any) -> frozenset[str]:
    if isinstance(node, list | tuple):
        return frozenset().union(*map(_list_packages, node))
    if not isinstance(node, Mapping):
        return frozenset()
    name = str(node.get("_target_") or "")
    packages = {re.split(r"[.:]", name)[0]} - _KNOWN - {""}
    return frozenset(packages).union(*map(_list_packages, node.values()))


def describe_own_error(error: BaseException, packages: frozenset[str] = frozenset()) -> str | None:
    """The paragraph for an error in code of the user: a callback, a loss term, a data
    module, a transform; None if the error came from elsewhere.

    packages: installed packages that are the user's.
    """
    is_stop = isinstance(error, SystemExit) and error.code in (130, 143)
    is_explained = isinstance(error, RequestError | RunError) or is_out_of_memory(error)
    if is_stop or is_explained or _is_disk_failure(str(error)):
        return None
    place = _find_place(error, packages) or _find_worker_place(error)
    if place is None:
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f"{type(error).__name__}: {take_first_line(error)}"
    if _WORKER.search(str(error)):
        reason = lines[-1]
    return f"{place} failed: {reason}. It is not part of kd_app: correct it, or leave it out."


def _is_disk_failure(text: str) -> bool:
    """Whether an error, or a library in its own, has the system's words for one."""
    return any(os.strerror(number) in text for number in _DISK)


def _find_place(error: BaseException, packages: frozenset[str]) -> str | None:
    """The outermost call into the user's code: 'Mine.on_start (mine.py, line 7)'."""
    for frame, line in walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if not _is_own(frame.f_code.co_filename) and package not in packages:
            continue
        owner = frame.f_locals.get("self")
        name = frame.f_code.co_qualname
        if owner is not None:
            name = f"{type(owner).__name__}.{frame.f_code.co_name}"
        return f"{name} ({frame.f_code.co_filename}, line {line})"
    return None


def _find_worker_place(error: BaseException) -> str | None:
    """The same from the text of an error in a process that loads data."""
    if _WORKER.search(str(error)) is None:
        return None
    for file, line, name in _WORKER_FRAME.findall(str(error)):
        if _is_own(file):
            return f"{name} ({file}, line {line})"
    return None


def _is_own(file: str) -> bool:
    """Whether a file of source code is the user's."""
    return file.endswith(".py") and not str(Path(file).resolve()).startswith(_LIBRARIES)
