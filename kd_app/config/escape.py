"""Texts for a terminal."""

import re
from typing import Final

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters other than tab and newline: escape sequences of terminals."""


def escape_controls(text: str) -> str:
    """Show control characters as escapes. Names in records and of files would else
    change what a terminal shows, or its settings.
    """
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)
