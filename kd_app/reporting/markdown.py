"""Markdown building blocks, with escaping for names that users provide."""

import re
from collections.abc import Iterable, Sequence


def to_table(rows: Iterable[Sequence[str]]) -> str:
    """A table; the caller provides the head and the line of dashes as rows."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def to_list_items(lines: Iterable[str]) -> str:
    """A list with one item per line."""
    return "\n".join(f"- {line}" for line in lines)


def escape_code(text: str) -> str:
    """Format a user-provided name as inline code that can't end early."""
    return f"`{' '.join(text.split()).replace('`', chr(39)).replace('|', '/')}`"


def escape_text(value: object) -> str:
    """Format a user-provided value as plain text on one line."""
    return re.sub(r"([\\`*\[\]<>|#])", r"\\\1", " ".join(str(value).split()))
