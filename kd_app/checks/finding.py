"""The result of a check."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["refusal", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One problem, under a stable name.

    A refusal means that the run would be useless, a warning that the run may not be
    what the user intends, and a note that something could not be checked in full.
    """

    name: str
    severity: Severity
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def refuse(name: str, text: str) -> Finding:
    """Build a finding that stops the run."""
    return Finding(name, "refusal", text)


def warn(name: str, text: str) -> Finding:
    """Build a finding that the user should read before the run."""
    return Finding(name, "warning", text)


def note(name: str, text: str) -> Finding:
    """Build a finding about something that was not checked, or only in part."""
    return Finding(name, "note", text)


def combine_refusals(texts: Sequence[str]) -> str:
    """Build one paragraph of all reasons not to run."""
    count = len(texts)
    return f"Refused for {count} reason{'s' if count > 1 else ''}. {' | '.join(texts)}"
