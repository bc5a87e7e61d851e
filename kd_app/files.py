"""Writing into folders that others may write into, too: a file or folder appears whole,
under a temporary name that nobody can guess, and no link is followed.

A temporary name is ``.<name>.<random>.partial``. The rights of what is written follow
the umask.
"""

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

PARTIAL: Final = ".partial"
"""The suffix of the temporary names. What a killed process leaves has it."""
_LONGEST: Final = 100
"""Characters of the final name in a temporary one: names have at most 255 bytes."""


@contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file, open for writing, that gets the name `path` when the body ends.

    Readers see the old or the new content, even after a kill. A link at `path` is
    replaced, not followed. A library that needs a path may write to ``Path(file.name)``
    instead. If the body raises, the new file is removed.
    """
    partial = _choose_name(path)
    file = partial.open("xb")  # O_EXCL: fails for whatever is there, links included
    try:
        with file:
            rights = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            yield file
        _flush(partial, rights)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """A new folder that takes the place of `path` when the body ends; a link at `path`
    is removed, not followed. If the body raises, the new folder is removed.
    """
    partial = _choose_name(path)
    partial.mkdir()
    try:
        yield partial
        remove(path)
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def make_folder(path: Path) -> None:
    """Make a folder if there is none; a link at `path` is replaced by a folder."""
    if path.is_symlink():
        path.unlink()
    path.mkdir(exist_ok=True)


def remove(path: Path) -> None:
    """Remove a file, a link (not its target) or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def list_regular_files(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the files in a folder and its subfolders, relative to the folder:
    the regular ones, and all others (links, pipes, devices). No link is followed.
    """
    regular, others = list[str](), list[str]()
    for path, status in _walk(folder):
        if not stat.S_ISDIR(status.st_mode):
            names = regular if stat.S_ISREG(status.st_mode) else others
            names.append(path.relative_to(folder).as_posix())
    return sorted(regular), sorted(others)


def remove_links(folder: Path) -> None:
    """Remove what could lead a writer out of a folder that somebody else may have
    filled: links, files with a second name elsewhere, pipes and devices.
    """
    for path, status in list(_walk(folder)):
        is_plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        if not is_plain and not stat.S_ISDIR(status.st_mode):
            path.unlink()


def is_outside(path: Path, folder: Path) -> bool:
    """Whether a link leads from `path`, a name in `folder`, out of the folder, or to
    nowhere in a loop.
    """
    try:
        return not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        return True


def follow_umask(folder: Path, like: Path) -> None:
    """Give this user's files below `folder` the rights of the file `like`, and the
    folders those of `folder`: some libraries make files that nobody else may read.
    """
    rights = {stat.S_IFREG: like.stat().st_mode, stat.S_IFDIR: folder.stat().st_mode}
    for path, status in list(_walk(folder)):
        mode = rights.get(stat.S_IFMT(status.st_mode), status.st_mode)
        if status.st_mode != mode and status.st_uid == os.geteuid():
            path.chmod(stat.S_IMODE(mode))


def _walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield everything below a folder with its status. No link is followed."""
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root, name)
            yield path, path.lstat()


def _choose_name(path: Path) -> Path:
    return path.with_name(f".{path.name[:_LONGEST]}.{secrets.token_hex(8)}{PARTIAL}")


def _flush(path: Path, rights: int) -> None:
    """Bring a file to the disk, with these rights. A library may have replaced it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != rights:
            os.fchmod(descriptor, rights)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
