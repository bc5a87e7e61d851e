"""The exported files that this process wrote itself, by sha256."""

from pathlib import Path

from kd_app.digest import hash_file

_WRITTEN: set[str] = set()


def mark_written(path: Path) -> None:
    """Remember that this process has just written the file."""
    _WRITTEN.add(hash_file(path))


def is_written(sha256: str) -> bool:
    """Whether this process wrote a file with this content."""
    return sha256 in _WRITTEN
