"""Output of a command that nobody can receive: a closed or full stdout or stderr does
not end the work.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class LossyStream:
    """A text stream that drops what can't be written."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text`, or drop it."""
        try:
            return int(self._stream.write(text))
        except OSError:
            return len(text)

    def flush(self) -> None:
        """Flush; what the system does not accept is dropped later."""
        with suppress(OSError):
            self._stream.flush()

    def close_if_broken(self) -> None:
        """Send the rest to nowhere if it can't be written, before Python flushes it at
        its end and fails.
        """
        try:
            self._stream.flush()
        except io.UnsupportedOperation:
            pass
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def drop_lost_output() -> Iterator[None]:
    """Let stdout and stderr drop what can't be written while the body runs."""
    _open_missing()
    before = sys.stdout, sys.stderr
    streams = [
        LossyStream(stream or os.fdopen(number, "w", encoding="utf-8", closefd=False))
        for number, stream in zip((1, 2), before, strict=True)
    ]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            stream.close_if_broken()
        sys.stdout, sys.stderr = before


def _open_missing() -> None:
    """Open the standard streams that are closed: a file would get their numbers, and
    child processes would write their output into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # the lowest free number is this one
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
