"""sha256 of a listing, independent of the machine and of the path of the images.

The hash changes when a byte, a file name or a label changes.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kd_app.config.regular_file import open_regular
from kd_app.data.source import Listing
from kd_app.files import replace_file

WHOLE_LIMIT = 2 * 1024**3
"""Total size in bytes up to which files are hashed as a whole.

Of larger data sets, only the size and both ends of each file are hashed.
"""
_END = 4096
_CHUNK = 256
_BLOCK = 2**20
_SIZE = hashlib.sha256().digest_size


class FileDigests(list[bytes]):
    """The digests of files; `whole`: whether all bytes of each file were hashed."""

    whole = True


FileState = tuple[int, int, int]
"""Size in bytes, and the times of the last change of content and of metadata in
nanoseconds. Any write to a file changes one of them.
"""


_Entries = dict[str, tuple[int, int, int, bool, bytes]]
"""By absolute path, the state, whether all bytes were hashed, and the digest."""


class DigestBook:
    """Digests of files by absolute path. A digest is computed again only if the state
    of its file has changed.

    path: of the file that keeps the book, read on first use; without a file, or with a
    damaged one, the book is empty.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: _Entries | None = None
        self._is_changed = False

    def find(self, path: str, state: FileState, *, whole: bool) -> bytes | None:
        """Return the digest of an unchanged file; None if it is unknown."""
        entry = self.open().get(os.path.abspath(path))
        return entry[4] if entry is not None and entry[:4] == (*state, whole) else None

    def add(self, path: str, state: FileState, digest: bytes, *, whole: bool) -> None:
        """Add the digest of a file that had this `state` before it was read."""
        self.open()[os.path.abspath(path)] = (*state, whole, digest)
        self._is_changed = True

    def save(self) -> None:
        """Write the book, atomically, if digests were added; not into a folder that
        can't be written, such as another user's.
        """
        if not self._is_changed:
            return
        names = "\0".join(self.open()).encode("utf-8", "surrogateescape")
        entries = list(self.open().values())
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(self._path) as file:
                np.savez(
                    file,
                    paths=np.frombuffer(names, dtype=np.uint8),
                    states=np.array([entry[:4] for entry in entries], dtype=np.int64),
                    digests=np.frombuffer(b"".join(entry[4] for entry in entries), dtype=np.uint8),
                )
            self._is_changed = False

    def open(self) -> _Entries:
        """Read the file, once, and return the entries."""
        if self._entries is None:
            self._entries = _read_entries(self._path)
        return self._entries


def _read_entries(path: Path) -> _Entries:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            text = arrays["paths"].tobytes().decode("utf-8", "surrogateescape")
            digests = arrays["digests"].tobytes()
            sizes, modified, changed, whole = arrays["states"].T.tolist()
        names = text.split("\0") if text else []
        parts = [digests[start : start + _SIZE] for start in range(0, len(digests), _SIZE)]
        rows = zip(sizes, modified, changed, map(bool, whole), parts, strict=True)
        return dict(zip(names, rows, strict=True))
    except Exception:
        # a damaged file can raise any exception
        return {}


_BOOK: ContextVar[DigestBook | None] = ContextVar("book", default=None)


@contextmanager
def use_digests(book: DigestBook) -> Iterator[None]:
    """Take digests of unchanged files from `book` and add computed digests to it."""
    token = _BOOK.set(book)
    try:
        yield
    finally:
        _BOOK.reset(token)


def add_fingerprint(listing: Listing, contents: Sequence[bytes]) -> Listing:
    """Return the listing with its fingerprint, and `contents` as its digests.

    The fingerprint is the sha256 of the class names, and of each image's file name,
    class, predefined split, group and content hash (`contents`).
    """
    total = hashlib.sha256(json.dumps(listing.classes).encode())
    for *row, content in zip(
        listing.files, listing.target.tolist(), listing.split, listing.group, contents, strict=True
    ):
        total.update(json.dumps([*row, content.hex()]).encode())
    return replace(
        listing,
        fingerprint=total.hexdigest(),
        digests=tuple(contents),
        whole=not isinstance(contents, FileDigests) or contents.whole,
    )


def hash_file(file: BinaryIO, *, whole: bool) -> bytes:
    """Return the sha256 of the size and the bytes of an open, seekable file.

    whole: hash all bytes, instead of the first and last 4 KiB only.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    digest = hashlib.sha256(size.to_bytes(8, "big"))
    if whole or size <= 2 * _END:
        while chunk := file.read(_BLOCK):
            digest.update(chunk)
    else:
        digest.update(file.read(_END))
        file.seek(-_END, os.SEEK_END)
        digest.update(file.read(_END))
    return digest.digest()


def hash_files(paths: Sequence[str | Path], *, whole: bool | None = None) -> FileDigests:
    """Return `hash_file` of each file; ``b""`` for a file that can't be opened.

    whole: as in `hash_file`; None: if the total size is at most `WHOLE_LIMIT`. See
    `use_digests`.
    """
    names = [os.fspath(path) for path in paths]
    files = [(name, _read_state(name)) for name in names]
    if whole is None:
        whole = sum(state[0] for _, state in files if state) <= WHOLE_LIMIT
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    book = _BOOK.get()
    if book is not None:
        book.open()  # before threads share it

    def hash_chunk(chunk: list[tuple[str, FileState | None]]) -> list[bytes]:
        return [_hash_path(path, state, book, whole=whole) for path, state in chunk]

    with ThreadPoolExecutor(max_workers=8) as pool:
        digests = FileDigests(digest for part in pool.map(hash_chunk, chunks) for digest in part)
    digests.whole = whole
    return digests


def _read_state(path: str) -> FileState | None:
    """Return the state of a file; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _hash_path(
    path: str, state: FileState | None, book: DigestBook | None, *, whole: bool
) -> bytes:
    if state is None:
        # Reading the image raises an error that names the file.
        return b""
    digest = None if book is None else book.find(path, state, whole=whole)
    if digest is not None:
        return digest
    try:
        with open_regular(path) as file:
            digest = hash_file(file, whole=whole)
    except OSError:
        return b""
    if book is not None:
        book.add(path, state, digest, whole=whole)
    return digest
