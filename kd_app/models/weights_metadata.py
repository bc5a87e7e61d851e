"""What a file of weights says of itself: words in the header of a .safetensors file,
beside the tensors.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import IO, Any

from kd_app.stages import hash_file

_METADATA = "__metadata__"
_MADE_WITH, _US = "made_with", "kd_app"
_LONGEST = 100_000_000
"""Bytes of a header, as safetensors bounds it."""


def read_metadata(path: Path) -> dict[str, str]:
    """The words in a file's header; none where it is no such file."""
    try:
        with path.open("rb") as file:
            found = _read_header(file).get(_METADATA)
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def write_with_metadata(source: Path, target: Path, *, license: str, teacher: str | None) -> None:
    """A copy of the weights in `source` that says their license, and who taught them.
    It has the `hash_weights` of `source`.
    """
    with source.open("rb") as old, target.open("wb") as new:
        header = _read_header(old)
        words = {"license": license, _MADE_WITH: _US} | ({"teacher": teacher} if teacher else {})
        new.write(
            _pack_header(
                {
                    _METADATA: {**header.get(_METADATA, {}), **words},
                    **{k: v for k, v in header.items() if k != _METADATA},
                }
            )
        )
        shutil.copyfileobj(old, new)


def hash_weights(path: Path) -> str:
    """sha256 of a file of weights, without what `write_with_metadata` wrote into it: the same
    weights under another license are the same weights.
    """
    if path.suffix != ".safetensors" or read_metadata(path).get(_MADE_WITH) != _US:
        return hash_file(path)
    with path.open("rb") as file:
        header = _read_header(file)
        metadata = {
            key: value
            for key, value in header.pop(_METADATA).items()
            if key not in ("license", "teacher", _MADE_WITH)
        }
        digest = hashlib.sha256(
            _pack_header({_METADATA: metadata, **header} if metadata else header)
        )
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _read_header(file: IO[bytes]) -> dict[str, Any]:
    """Read the header; the file stands behind it then. Raises `ValueError` where there
    is none.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > _LONGEST:
        raise ValueError("this is no header of safetensors")
    found = json.loads(file.read(length))
    if not isinstance(found, dict):
        raise ValueError("this is no header of safetensors")
    return found


def _pack_header(header: dict[str, Any]) -> bytes:
    """Length, JSON, and spaces up to a multiple of 8 bytes, as safetensors writes it."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
