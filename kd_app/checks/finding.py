"""What a check has to say."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that was found, under a name that stays. A refusal: a run would be of
    no use; a warning: it may not be what is meant.
    """

    name: str
    weight: Literal["refusal", "warning", "note"]
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def refuse(name: str, text: str) -> Finding:
    """A reason not to run."""
    return Finding(name, "refusal", text)


def warn(name: str, text: str) -> Finding:
    """A reason to think again."""
    return Finding(name, "warning", text)


def note(name: str, text: str) -> Finding:
    """What could not be checked, or was checked in part."""
    return Finding(name, "note", text)
