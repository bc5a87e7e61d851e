"""Values that no setting and no record has: refused before they are used."""

import math
from collections.abc import Mapping
from typing import Any, Final

from kd_app.config.errors import RequestError

MAX_DEPTH: Final = 64
"""Maximum nesting of a configuration or record."""
_LARGEST = 2**63 - 1
_LONGEST_SHOWN = 80


def check_values(node: Any, key: str = "", depth: int = 0) -> None:
    """Raise `RequestError` for a number that is not finite or above 64 bits, for a text
    that is not valid Unicode, for a value that is not plain data, and for nesting above
    `MAX_DEPTH`.
    """
    if depth > MAX_DEPTH:
        raise RequestError(
            f"{shorten(key)} is nested too deeply. Expected: at most {MAX_DEPTH} levels."
        )
    if isinstance(node, Mapping):
        for name, each in node.items():
            if not isinstance(name, str | int | float | None):
                raise RequestError(f"{key} has the key {shorten(repr(name))}. Expected: a text.")
            _check_text("a key", str(name))
            check_values(each, f"{key}.{name}" if key else str(name), depth + 1)
    elif isinstance(node, list | tuple):
        for number, each in enumerate(node):
            check_values(each, f"{key}.{number}", depth + 1)
    elif isinstance(node, float):
        if not math.isfinite(node):
            raise RequestError(f"{key}={node} is not a finite number. Expected: a finite number.")
    elif isinstance(node, int):
        if abs(node) > _LARGEST:
            raise RequestError(
                f"{key}={shorten(hex(node) if node.bit_length() > _LONGEST_BITS else str(node))}"
                f" is too large. Expected: at most {_LARGEST}."
            )
    elif isinstance(node, str):
        _check_text(key, node)
    elif isinstance(node, bytes | set) or type(node).__module__ == "datetime":
        raise RequestError(
            f"{key}={shorten(repr(node))} is not plain data. Expected: texts, numbers, lists and"
            " mappings."
        )


_LONGEST_BITS = 4096
"""Python refuses to write longer numbers in decimal."""


def shorten(text: str, length: int = _LONGEST_SHOWN) -> str:
    """The beginning of a long text."""
    return text if len(text) <= length else f"{text[:length]}..."


def _check_text(key: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(
            f"{key}={shorten(text)!r} is not valid UTF-8, the encoding of the files that kd_app"
            " writes. Expected: names in UTF-8. Rename the file or folder, for example with convmv."
        ) from None
