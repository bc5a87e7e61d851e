"""Assistants between teacher and student, and generations of one net: each link is
taught by the one before it.

Mirzadeh et al., "Improved knowledge distillation via teacher assistant", AAAI 2020,
arXiv 1902.03393; Furlanello et al., "Born-again neural networks", ICML 2018, arXiv
1805.04770, where the links are the student's own net.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kd_app.training.proof import evaluated
from kd_app.training.roles import train
from kd_app.training.workshop import Member, Workshop


class _Unheard:
    """A tracker that tells nobody: a link's curves are not the student's."""

    def start(self, stage: str, teacher: Any, points: Sequence[Any]) -> None:
        """Nobody listens."""

    def ready(self, stage: str, *more: Any) -> None:
        """Nobody listens."""


def chained(shop: Workshop, teacher: Member) -> Member:
    """The last link of ``teacher.chain``, each trained as the student is, or found;
    stages ``link-1``, ``link-2`` ...

    A link's seed is the teacher's and its number: seeds and trials of the student share
    the chain.
    """
    said = shop.parts.config["teacher"].get("seed", 0)
    for number, link in enumerate(shop.parts.links, start=1):
        recipe = replace(shop.parts.recipe, seed=said + number, callbacks={})
        other = shop.going_on(link.request, link.node, recipe)
        other.tracker, other.watch = _Unheard(), None
        teacher = replace(train(other, "student", teacher, stage=f"link-{number}"), role="teacher")
        shop.console.say(
            f"Link {number} of the chain, {teacher.request.name}:"
            f" {evaluated(shop.predictions(teacher, 'validation'))} on validation"
        )
    return teacher
