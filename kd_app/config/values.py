"""Values that no setting has: refused in every configuration before a part is built."""

import math
from collections.abc import Mapping
from typing import Any

from kd_app.config.errors import RequestError

_LARGEST = 2**63 - 1
_LONGEST_SHOWN = 80


def check_values(node: Any, key: str = "") -> None:
    """Raise `RequestError` for a number that is not finite or above 64 bits, and for a
    text that is not valid Unicode.
    """
    if isinstance(node, Mapping):
        for name, each in node.items():
            check_values(each, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list | tuple):
        for number, each in enumerate(node):
            check_values(each, f"{key}.{number}")
    elif isinstance(node, float) and not math.isfinite(node):
        raise RequestError(f"{key}={node} is not a finite number. Expected: a finite number.")
    elif isinstance(node, int) and abs(node) > _LARGEST:
        digits = f"{str(node)[:_LONGEST_SHOWN]}{'...' if node > 10**_LONGEST_SHOWN else ''}"
        raise RequestError(f"{key}={digits} is too large. Expected: at most {_LARGEST}.")
    elif isinstance(node, str):
        _check_text(key, node)


def _check_text(key: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(
            f"{key}={text!r} is not valid UTF-8, the encoding of the files that kd_app writes."
            " Expected: names in UTF-8. Rename the file or folder, for example with convmv."
        ) from None
