"""sha256 of a listing, independent of the machine and of the path of the images.

The hash changes when a byte, a file name or a label changes.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from kd_app.data.source import Listing

WHOLE_LIMIT = 2 * 1024**3
"""Total size in bytes up to which files are hashed as a whole.

Of larger data sets, only the size and both ends of each file are hashed.
"""
_END = 4096
_CHUNK = 256


def add_fingerprint(listing: Listing, contents: Sequence[bytes]) -> Listing:
    """Return the listing with its fingerprint.

    The fingerprint is the sha256 of the class names, and of each image's file name,
    class, predefined split, group and content hash (`contents`).
    """
    total = hashlib.sha256(json.dumps(listing.classes).encode())
    for *row, content in zip(
        listing.files, listing.target.tolist(), listing.split, listing.group, contents, strict=True
    ):
        total.update(json.dumps([*row, content.hex()]).encode())
    return replace(listing, fingerprint=total.hexdigest())


def hash_file(file: BinaryIO, *, whole: bool) -> bytes:
    """Return the sha256 of the size and the bytes of an open, seekable file.

    whole: hash all bytes, instead of the first and last 4 KiB only.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    digest = hashlib.sha256(size.to_bytes(8, "big"))
    if whole or size <= 2 * _END:
        digest.update(file.read())
    else:
        digest.update(file.read(_END))
        file.seek(-_END, os.SEEK_END)
        digest.update(file.read(_END))
    return digest.digest()


def hash_files(paths: Sequence[Path]) -> list[bytes]:
    """Return `hash_file` of each file; ``b""`` for a file that can't be opened.

    Files are hashed as a whole unless their total size is above `WHOLE_LIMIT`.
    """
    whole = sum(map(_read_size, paths)) <= WHOLE_LIMIT
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        return [
            digest
            for part in pool.map(lambda chunk: [_hash_path(path, whole) for path in chunk], chunks)
            for digest in part
        ]


def _read_size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _hash_path(path: Path, whole: bool) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return hash_file(file, whole=whole)
    except OSError:
        # Reading the image raises an error that names the file.
        return b""
