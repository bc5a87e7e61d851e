"""Which two models are compared, by the names that results give them."""

from collections.abc import Container
from typing import Final, NamedTuple


class ModelPair(NamedTuple):
    """Names of the model that is judged and of the model that it is compared with."""

    candidate: str
    reference: str


DISTILLATION: Final = ModelPair("student", "teacher")
CASCADE: Final = ModelPair("candidate", "reference")
"""What ships in place of a cascade's last stage, and that stage."""


def find_pair(names: Container[str]) -> ModelPair:
    """The pair that is among the `names` of models; the reference may be missing."""
    return CASCADE if CASCADE.candidate in names else DISTILLATION
