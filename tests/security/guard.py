"""A guard that records what the process does beyond computing: connections, other
processes, written files, and imports of a stranger's package.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STRANGER = "stranger_of_the_tests"
"""A package that nobody but a payload names."""
_ALWAYS = (
    *("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"),
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"),
    *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"),
    *("os.putenv", "os.chmod", "shutil.copyfile", "shutil.rmtree", "shutil.move"),
    *("pickle.find_class", "webbrowser.open"),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_events: list[str] | None = None


def _record(event: str, arguments: tuple[Any, ...]) -> None:
    if _events is None:
        return
    is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
    is_import = event == "import" and str(arguments[0]).startswith(STRANGER)
    if is_write or is_import or event in _ALWAYS:
        _events.append(f"{event} {arguments[:2]!r}")


sys.addaudithook(_record)


@contextmanager
def watch() -> Iterator[list[str]]:
    """The list of what happens in the body."""
    global _events  # noqa: PLW0603  # an audit hook can't be removed
    events: list[str] = []
    _events = events
    try:
        yield events
    finally:
        _events = None
