"""The two models of a comparison, by their names in results.json."""

from collections.abc import Container
from typing import Final, NamedTuple


class ModelPair(NamedTuple):
    """Name of the candidate, and of the reference that it is compared with."""

    candidate: str
    reference: str


DISTILLATION: Final = ModelPair("student", "teacher")
CASCADE: Final = ModelPair("candidate", "reference")
"""The exported replacement of a cascade's last stage, and that stage."""


def find_pair(names: Container[str]) -> ModelPair:
    """Return the pair whose candidate is in `names`; the reference may be missing."""
    return CASCADE if CASCADE.candidate in names else DISTILLATION
