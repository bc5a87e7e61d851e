"""sha256 of a listing: the same for the same images anywhere, another one when a byte,
a name or a label changes.
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
"""Bytes in all up to which every byte of every file counts; above, only the size and
both ends of each file.
"""
_END = 4096
_CHUNK = 256


def add_fingerprint(listing: Listing, contents: Sequence[bytes]) -> Listing:
    """The listing with its fingerprint: sha256 over the classes, and over each image's
    name, class, ready split, group and hash of its content.
    """
    total = hashlib.sha256(json.dumps(listing.classes).encode())
    for *row, content in zip(
        listing.files, listing.target.tolist(), listing.split, listing.group, contents, strict=True
    ):
        total.update(json.dumps([*row, content.hex()]).encode())
    return replace(listing, fingerprint=total.hexdigest())


def hash_file(file: BinaryIO, *, whole: bool) -> bytes:
    """sha256 over the size and the bytes of an open, seekable file; without `whole`
    over its first and last 4 KiB alone.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    found = hashlib.sha256(size.to_bytes(8, "big"))
    if whole or size <= 2 * _END:
        found.update(file.read())
    else:
        found.update(file.read(_END))
        file.seek(-_END, os.SEEK_END)
        found.update(file.read(_END))
    return found.digest()


def hash_files(paths: Sequence[Path]) -> list[bytes]:
    """`hash_file` of each file, whole unless all together hold more than `WHOLE_LIMIT`
    bytes; empty where a file can't be opened.
    """
    whole = sum(map(_read_size, paths)) <= WHOLE_LIMIT
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        return [
            found
            for part in pool.map(lambda chunk: [_hash_path(path, whole) for path in chunk], chunks)
            for found in part
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
    except OSError:  # told by name when the image is read
        return b""
