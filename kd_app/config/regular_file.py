"""Reading of files that others placed: regular files only.

A named pipe, a device or a socket blocks its reader, or never ends.
"""

import errno
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO, TextIO


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file, or a link to one, for reading.

    Raises `OSError` if there is no such file, or if it is a folder, a pipe, a socket or
    a device.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


_BINARY = getattr(os, "O_BINARY", 0)


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a regular file of up to `limit` bytes; raises `OSError` else."""
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes", str(path))
    return content


def open_regular_text(
    path: str | os.PathLike[str], *, encoding: str = "utf-8", newline: str | None = ""
) -> TextIO:
    """Open a regular file as text; raises `OSError` as `open_regular`."""
    return io.TextIOWrapper(open_regular(path), encoding=encoding, newline=newline)
