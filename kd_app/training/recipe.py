"""How one model is trained, as plain configuration, and the parts that are made of it
for each training anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from lightning.pytorch.callbacks import Callback

from kd_app.config import RequestError
from kd_app.config.make import make
from kd_app.config.schedule import Schedule
from kd_app.losses.base import LossTerm
from kd_app.models.request import ModelRequest
from kd_app.training.controls import smoothing_of
from kd_app.training.optimizer import Optimizer
from kd_app.training.terms import WeightedTerms

Config = dict[str, Any]
_OF_THE_SUM = ("weight", "schedule", "teacher")
"""Keys of a loss term that are not for the term."""


@dataclass(frozen=True)
class Recipe:
    """How one model is trained, as plain configuration: loss terms, optimizer,
    schedule, callbacks, epochs, seed.
    """

    loss: Config
    optimizer: Config
    scheduler: Config
    callbacks: Config
    max_epochs: int
    seed: int

    @property
    def how(self) -> str:
        """In words, for the plan."""
        return f"for {_epochs(self.max_epochs)} on {' + '.join(self.loss)}"

    def terms(self) -> WeightedTerms:
        """Fresh terms, without adapters yet."""
        parts = {
            name: {k: v for k, v in node.items() if k not in _OF_THE_SUM}
            for name, node in self.loss.items()
        }
        weights = {name: _weight(name, node) for name, node in self.loss.items()}
        schedules = {
            name: _schedule(name, node["schedule"])
            for name, node in self.loss.items()
            if node.get("schedule") is not None
        }
        members = {
            name: str(node["teacher"])
            for name, node in self.loss.items()
            if node.get("teacher") is not None
        }
        return WeightedTerms(
            {name: make(part, LossTerm) for name, part in parts.items()},
            weights,
            schedules,
            members,
        )

    def make_optimizer(self) -> Optimizer:
        """The optimizer's settings."""
        made: Optimizer = make(self.optimizer, Optimizer)
        return made

    def make_schedule(self) -> Schedule:
        """The schedule of the learning rate."""
        made: Schedule = make(self.scheduler, Schedule)
        return made

    def make_callbacks(self) -> list[Callback]:
        """Fresh callbacks."""
        return [make(node, Callback) for node in self.callbacks.values()]


@dataclass(frozen=True)
class Control(Recipe):
    """A recipe that is settled when its turn comes; see `ControlSettings`.

    students: the nets of which the one nearest in cost to the student is taken; empty:
    the student's own. named: the first of them is meant.
    """

    students: tuple[ModelRequest, ...] = ()
    named: bool = True
    as_long: bool = False
    entropy_at: float | None = None
    shuffled: bool = False

    def plain(self, **changes: Any) -> Recipe:
        """The recipe alone, with `changes`."""
        return replace(
            Recipe(**{each.name: getattr(self, each.name) for each in fields(Recipe)}), **changes
        )

    @property
    def how(self) -> str:
        """As `Recipe.how`."""
        long = (
            "for as long as the student's training takes"
            if self.as_long
            else f"for {_epochs(self.max_epochs)}"
        )
        soft = (
            f", labels as soft as the teacher's answers at temperature {self.entropy_at:g}"
            if self.entropy_at is not None
            else ""
        )
        return (
            f"{long} on"
            f" {' + '.join(self.loss)}{soft}{', the teacher shown another image of the class' if self.shuffled else ''}"
        )

    def smoothed(self, entropy: float, num_classes: int) -> Recipe:
        """With labels of this entropy (nats)."""
        smoothing = smoothing_of(entropy, num_classes)
        return self.plain(
            loss={
                name: {**node, "smoothing": smoothing} if "smoothing" in node else node
                for name, node in self.loss.items()
            }
        )


def _epochs(number: int) -> str:
    return f"{number} epoch{'' if number == 1 else 's'}"


def _weight(name: str, node: Config) -> float:
    weight = node.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
        raise RequestError(
            f"loss.{name}.weight={weight!r} does not fit: expected a number, 0 or more."
        )
    return float(weight)


def _schedule(name: str, node: Any) -> Schedule:
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise RequestError(
            f"loss.{name}.schedule={node!r} does not fit: expected one of scheduler's choices, for"
            f" example loss.{name}.schedule=warmup, and then its settings, for example"
            f" loss.{name}.schedule.end=0.2."
        )
    made: Schedule = make(node, Schedule)
    return made
