"""Values that no setting and no record has: refused before they are used."""

import math
from collections.abc import Mapping
from typing import Any, Final

from kd_app.config.errors import RequestError

MAX_DEPTH: Final = 64
"""Maximum nesting of a configuration or record."""
_LARGEST = 2**63 - 1
_LONGEST_SHOWN = 80


def check_values(node: Any, key: str = "") -> None:
    """Raise `RequestError` for a number that is not finite or above 64 bits, for a text
    that is not valid Unicode, for a value that is not plain data, and for nesting above
    `MAX_DEPTH`.
    """
    _check(node, key, (), 0)


def _check(node: Any, key: str, parents: tuple[Any, ...], depth: int) -> None:
    """Check a node. parents: the keys above it, as nested pairs, which are joined for
    an error only: records have millions of values.
    """
    if depth > MAX_DEPTH:
        raise RequestError(
            f"{shorten(_join(key, parents))} is nested too deeply. Expected: at most"
            f" {MAX_DEPTH} levels."
        )
    # most values are texts and numbers, and the check for a Mapping is slow
    if isinstance(node, str):
        if not node.isascii():
            _check_text(_join(key, parents), node)
    elif isinstance(node, list | tuple):
        for number, each in enumerate(node):
            _check(each, key, (parents, number), depth + 1)
    elif not isinstance(node, int | float | None) and isinstance(node, Mapping):
        for name, each in node.items():
            if not isinstance(name, str | int | float | None):
                raise RequestError(
                    f"{_join(key, parents)} has the key {shorten(repr(name))}. Expected: a text."
                )
            _check_text("a key", str(name))
            _check(each, key, (parents, name), depth + 1)
    elif reason := _find_reason(node):
        raise RequestError(f"{_join(key, parents)}={reason}")


def _find_reason(node: Any) -> str:
    """Why a value that is no text and no container is refused; '' if it is not."""
    if isinstance(node, float) and not math.isfinite(node):
        return f"{node} is not a finite number. Expected: a finite number."
    if isinstance(node, int) and abs(node) > _LARGEST:
        number = hex(node) if node.bit_length() > _LONGEST_BITS else str(node)
        return f"{shorten(number)} is too large. Expected: at most {_LARGEST}."
    if isinstance(node, bytes | set) or type(node).__module__ == "datetime":
        return (
            f"{shorten(repr(node))} is not plain data. Expected: texts, numbers, lists and"
            " mappings."
        )
    return ""


def _join(key: str, parents: tuple[Any, ...]) -> str:
    names = []
    while parents:
        parents, name = parents
        names.append(str(name))
    return ".".join([key, *reversed(names)] if key else names[::-1])


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
