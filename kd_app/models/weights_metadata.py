"""Metadata of a .safetensors file: license and teacher, stored in the header."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import IO, Any

from kd_app.config.records import parse_values
from kd_app.config.regular_file import open_regular
from kd_app.digest import hash_file

_METADATA = "__metadata__"
_LABELED_BY, _KD_APP = "made_with", "kd_app"
_MAX_HEADER = 100_000_000
"""Maximum size of a header in bytes, as in safetensors."""


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata in the header of a file, or nothing if it is no .safetensors
    file.
    """
    try:
        with open_regular(path) as file:
            metadata = _read_header(file).get(_METADATA)
    except (OSError, ValueError):
        return {}
    if not isinstance(metadata, dict):
        return {}
    return {str(key): str(value) for key, value in metadata.items()}


def write_with_metadata(source: Path, target: Path, *, license: str, teacher: str | None) -> None:
    """Copy the weights in `source` to `target`, with license and teacher in the
    metadata. `hash_weights` of both files is the same.
    """
    with source.open("rb") as old, target.open("wb") as new:
        header = _read_header(old)
        label = {"license": license, _LABELED_BY: _KD_APP}
        if teacher:
            label["teacher"] = teacher
        tensors = {key: value for key, value in header.items() if key != _METADATA}
        new.write(_pack_header({_METADATA: {**header.get(_METADATA, {}), **label}, **tensors}))
        shutil.copyfileobj(old, new)


def hash_weights(path: Path) -> str:
    """Return the sha256 of a weights file without the metadata that
    `write_with_metadata` adds: relabeled weights keep their hash.
    """
    if path.suffix != ".safetensors" or read_metadata(path).get(_LABELED_BY) != _KD_APP:
        return hash_file(path)
    with path.open("rb") as file:
        header = _read_header(file)
        metadata = {
            key: value
            for key, value in header.pop(_METADATA).items()
            if key not in ("license", "teacher", _LABELED_BY)
        }
        digest = hashlib.sha256(
            _pack_header({_METADATA: metadata, **header} if metadata else header)
        )
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _read_header(file: IO[bytes]) -> dict[str, Any]:
    """Read the header, and leave the file position after it. Raises `ValueError` if
    there is none.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER:
        raise ValueError("not a safetensors header")
    header = parse_values(file.read(length).decode("utf-8"))
    if not isinstance(header, dict):
        raise ValueError("not a safetensors header")
    return header


def _pack_header(header: dict[str, Any]) -> bytes:
    """Return length, JSON, and padding to a multiple of 8 bytes, as safetensors writes
    them.
    """
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
