"""The sha256 of values and files, and records that hold their own.

This module needs the standard library only.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

SELF: Final = "sha256"
"""In a record: the hash of the other keys."""
CHANGED: Final = (
    "has changed since kd_app wrote it, by hand or by damage: its content does not have the sha256"
    " that it records, so it is not used."
)
"""The message about a record for which `is_changed`, after its name."""


def hash_value(value: Any) -> str:
    """The sha256 of plain data (dicts, lists, strings, numbers, None), independent of
    the order of keys.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def round_trip_json(value: dict[str, Any]) -> dict[str, Any]:
    """The value as it is read back from JSON, for comparison with a stored one."""
    loaded: dict[str, Any] = json.loads(json.dumps(value))
    return loaded


def hash_file(path: Path) -> str:
    """The sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with its own hash, which a reader verifies with `is_sealed`."""
    content = {key: value for key, value in record.items() if key != SELF}
    return {**content, SELF: hash_value(content)}


def is_changed(record: Mapping[str, Any]) -> bool:
    """Whether the record has another hash than its own. Records of earlier versions
    have none.
    """
    return SELF in record and not is_sealed(record)


def is_sealed(record: Mapping[str, Any]) -> bool:
    """Whether the record has not changed since it was sealed."""
    content = {key: value for key, value in record.items() if key != SELF}
    try:
        return bool(record.get(SELF) == hash_value(content))
    except ValueError:  # NaN, which is never written
        return False
