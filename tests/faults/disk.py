"""A disk of a few megabytes that gets full, or read-only, when a test says so."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch


class Disk:
    """A folder whose disk can be full. Where this process may not mount one, the
    system's limit on the size of its files stands in for it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / ".ballast"
        self._mounted = _mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder))

    def fill(self, *, leave: int = 0) -> None:
        """No file can grow any more, but for the first `leave` bytes."""
        if not self._mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (leave, resource.RLIM_INFINITY))
            return
        free = os.statvfs(self.folder)
        with self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(free.f_bavail * free.f_frsize - leave, 1))

    def empty(self) -> None:
        """There is room again."""
        if self._mounted:
            self._ballast.unlink(missing_ok=True)
        else:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )

    @contextmanager
    def full_from(self, moment: str, *, call: int = 1, leave: int = 0) -> Iterator[None]:
        """Full from just before the so many-th call of the function `moment`
        ('module.Class.method') on, with room again afterwards.
        """
        owner, _, attribute = moment.rpartition(".")
        where = resolve_name(owner)
        plain, calls = getattr(where, attribute), 0

        def filling(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                self.fill(leave=leave)
            return plain(*args, **kwargs)

        with patch.object(where, attribute, filling):
            try:
                yield
            finally:
                self.empty()
        assert calls >= call, f"{moment} was called {calls} times"

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Nothing can be written."""
        if self._mounted:
            assert _mount("-o", "remount,ro", str(self.folder))
        else:
            self.folder.chmod(0o555)
        try:
            yield
        finally:
            if self._mounted:
                assert _mount("-o", "remount,rw", str(self.folder))
            else:
                self.folder.chmod(0o755)

    def close(self) -> None:
        """Take it away."""
        self.empty()
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


def _mount(*arguments: str) -> bool:
    try:
        return (
            subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
        )
    except OSError:
        return False
