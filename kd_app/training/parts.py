"""From the configuration to the parts it names, each checked by its own signature. The only caller of hydra's instantiate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from inspect import signature
from typing import Any, Literal

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Callback
from torch import nn

from kd_app.config import RequestError
from kd_app.config.schedule import Schedule
from kd_app.config.targets import FACTORY, check_targets
from kd_app.data.corruptions import Robustness
from kd_app.data.foreign import UNPAIRED, ForeignData
from kd_app.data.module import ImageData
from kd_app.losses.base import LossTerm
from kd_app.models.composed import OwnAverage
from kd_app.models.license import Licensed, Licenses, Policy, licenses
from kd_app.models.request import ModelRequest
from kd_app.training.asked import Link, composed, found, links_of, requested
from kd_app.training.budget import LatencyBudget
from kd_app.training.controls import ControlSettings, smoothing_of
from kd_app.training.controls import check as check_control
from kd_app.training.fed import check_fed
from kd_app.training.optimizer import Optimizer
from kd_app.training.settings import Asking, Job, Licensing, OwnAverageTeacher, Said, TeacherTraining
from kd_app.training.suited import check_teacher
from kd_app.training.terms import WeightedTerms
from kd_app.training.trainer import TrainerSettings

Config = dict[str, Any]
OURS = f"{ImageData.__module__}.{ImageData.__qualname__}"
_TOLD = ("name", "suggested", "license")
"""Keys of the data group that are not for the data module."""
_OF_THE_SUM = ("weight", "schedule", "teacher")
"""Keys of a loss term that are not for the term."""


@dataclass(frozen=True)
class Recipe:
    """How one model is trained, as plain configuration: loss terms, optimizer, schedule, callbacks, epochs, seed."""

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
        parts = {name: {k: v for k, v in node.items() if k not in _OF_THE_SUM} for name, node in self.loss.items()}
        weights = {name: _weight(name, node) for name, node in self.loss.items()}
        schedules = {name: _schedule(name, node["schedule"]) for name, node in self.loss.items() if node.get("schedule") is not None}
        members = {name: str(node["teacher"]) for name, node in self.loss.items() if node.get("teacher") is not None}
        return WeightedTerms({name: make(part, LossTerm) for name, part in parts.items()}, weights, schedules, members)

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

    students: the nets of which the one nearest in cost to the student is taken; empty: the student's own. named: the first of them is meant.
    """

    students: tuple[ModelRequest, ...] = ()
    named: bool = True
    as_long: bool = False
    entropy_at: float | None = None
    shuffled: bool = False

    def plain(self, **changes: Any) -> Recipe:
        """The recipe alone, with `changes`."""
        return replace(Recipe(**{each.name: getattr(self, each.name) for each in fields(Recipe)}), **changes)

    @property
    def how(self) -> str:
        """As `Recipe.how`."""
        long = "for as long as the student's training takes" if self.as_long else f"for {_epochs(self.max_epochs)}"
        soft = f", labels as soft as the teacher's answers at temperature {self.entropy_at:g}" if self.entropy_at is not None else ""
        return f"{long} on {' + '.join(self.loss)}{soft}{', the teacher shown another image of the class' if self.shuffled else ''}"

    def smoothed(self, entropy: float, num_classes: int) -> Recipe:
        """With labels of this entropy (nats)."""
        smoothing = smoothing_of(entropy, num_classes)
        return self.plain(loss={name: {**node, "smoothing": smoothing} if "smoothing" in node else node for name, node in self.loss.items()})


def _epochs(number: int) -> str:
    return f"{number} epoch{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class OwnParts:
    """Objects that somebody hands over in a notebook instead of naming them in the configuration."""

    teacher: nn.Module | None = None
    student: nn.Module | None = None
    data: LightningDataModule | None = None


@dataclass(frozen=True)
class Parts:
    """Everything that a run is made of, made and checked before data or weights are read."""

    config: Config
    data: Any
    trainer: TrainerSettings
    student: ModelRequest
    recipe: Recipe
    controls: dict[str, Control]
    teacher: ModelRequest | None
    teacher_recipe: Recipe | None
    licenses: Licenses
    robustness: Robustness
    answers: Literal["live", "stored"] = "live"
    links: tuple[Link, ...] = ()
    budget: LatencyBudget | None = None
    own: OwnParts = field(default_factory=OwnParts)


def make(node: Mapping[str, Any], kind: type[Any], **more: Any) -> Any:
    """The object that ``_target_`` names, with the node's other keys as arguments; `RequestError` when that can't be."""
    target = node.get("_target_")
    if not isinstance(target, str):
        raise RequestError(f"{dict(node)!r} names no part: it has no _target_. Expected the dotted name of a {kind.__name__}.")
    try:
        made = instantiate(dict(node), **more, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, RequestError):
            raise error.__cause__ from None
        reason = " ".join(str(error.__cause__ or error).split())
        raise RequestError(
            f"The part {target} can't be made: {reason} Its settings: { {k: v for k, v in node.items() if k != '_target_'}!r}."
        ) from None
    if not isinstance(made, kind):
        raise RequestError(f"{target} gives a {type(made).__name__}, expected a {kind.__name__}.")
    return made


def parts(config: Config, own: OwnParts | None = None) -> Parts:
    """Make and check every part of a run's configuration; nothing is read, fetched or written."""
    own = own or OwnParts()
    Job(**config)
    check_targets(config, config["allow"])
    trainer = make(config["trainer"], TrainerSettings)
    if trainer.world_size > 1 and own != OwnParts():
        raise RequestError("Parts handed over as objects live in this process alone: use trainer.devices=1, or name them by _target_.")
    common = {key: config[key] for key in ("optimizer", "scheduler", "callbacks")}
    recipe = Recipe(loss=config["loss"], max_epochs=trainer.max_epochs, seed=config["seed"], **common)
    teacher, teacher_recipe = _teacher(config, own)
    controls = {name: _control(name, node, recipe) for name, node in config["controls"].items()} if teacher is not None else {}
    data = _data(config["data"], own)
    if trainer.world_size > 1 and isinstance(data, ForeignData):
        raise RequestError(
            f"trainer.devices={trainer.world_size}, but {config['data']['_target_']} gives every process the same batches. Use trainer.devices=1."
        )
    if isinstance(data, ForeignData) and any(control.shuffled for control in controls.values()):
        raise RequestError(UNPAIRED)
    student = requested("student", config["student"], own.student)
    links = links_of(config["teacher"])
    if links and (teacher is None or own.teacher is not None):
        raise RequestError("teacher.chain names nets between a teacher and the student, and there is no teacher that a configuration names.")
    robustness = Robustness(**config["robustness"])
    if robustness.chosen and isinstance(data, ForeignData):
        raise RequestError(
            "robustness.corruptions are made on images of 8 bits, and the data module of this run gives normalized ones. "
            "Leave them out: robustness=none."
        )
    made = Parts(
        config=config,
        data=data,
        trainer=trainer,
        student=student,
        recipe=recipe,
        controls=controls,
        teacher=teacher,
        teacher_recipe=teacher_recipe,
        licenses=_licenses(config, teacher, links, student, data),
        robustness=robustness,
        answers=Asking(answers=(config["teacher"] or {}).get("answers", "live")).answers,
        links=links,
        budget=make(config["budget"], LatencyBudget) if config["budget"] is not None else None,
        own=own,
    )
    _check(made)
    listening = {name: each.terms() for name, each in {**controls, "student": recipe}.items()} if teacher is not None else {}
    shuffled = [name for name, control in controls.items() if control.shuffled]
    check_fed(config["data"], data, made.answers, {name: terms for name, terms in listening.items() if terms.needs_teacher}, shuffled)
    return made


def _licenses(config: Config, teacher: ModelRequest | None, links: Sequence[Link], student: ModelRequest, data: Any) -> Licenses:
    """What the run's weights and images are under, as they say it or, where they don't, as the configuration does."""
    asked = Licensing(**config["license"])
    if isinstance(data, ImageData):
        name, known = str(config["data"].get("name", "images")), data.source.license
    else:
        name, known = type(data.module).__qualname__, getattr(data.module, "license", None)
    return licenses(
        teacher=_weights(teacher, "teacher's weights", config, links) if teacher else None,
        student_start=_weights(student, "student's starting weights", config),
        data=Licensed(f"the data ({name})", "data.license", known, Said(license=config["data"].get("license")).license),
        accept=asked.accept,
        policy=asked.policy,
    )


def _weights(request: ModelRequest, what: str, config: Config, links: Sequence[Link] = ()) -> Licensed:
    said = Said(license=(config[request.role] or {}).get("license")).license
    known = Policy().strictest(request.origin.license, *(link.request.origin.license for link in links)) if links else request.origin.license
    return Licensed(f"the {what} ({request.name})", f"{request.role}.license", known, said)


def _data(node: Config, own: OwnParts) -> Any:
    """Our data module, or somebody's own behind the same face."""
    if own.data is not None:
        return ForeignData(own.data)
    settings = {key: value for key, value in node.items() if key not in _TOLD}
    if node["_target_"] != OURS:
        settings = _taken(settings)
    made = make(settings, LightningDataModule)
    return made if isinstance(made, ImageData) else ForeignData(made)


def _taken(settings: Config) -> Config:
    """For somebody's own module: of the settings that are there for ours those that it takes, and all others."""
    ours = signature(ImageData).parameters
    taken = signature(found("data", settings["_target_"])).parameters
    return {key: value for key, value in settings.items() if key not in ours or key in taken}


def _check(made: Parts) -> None:
    """Make every recipe's parts once, so that what is wrong with them is said now."""
    for each in (made.recipe, made.teacher_recipe, *made.controls.values()):
        if each is None:
            continue
        terms = each.terms()
        each.make_optimizer().check_place(made.trainer.world_size, made.trainer.precision)
        each.make_schedule()
        each.make_callbacks()
        check_teacher(terms, None if each is made.teacher_recipe else made.teacher, chained=bool(made.links))
    if isinstance(made.teacher, OwnAverage) and made.trainer.world_size > 1:
        raise RequestError(f"teacher=ema follows the student of one process, and trainer.devices={made.trainer.world_size}. Use trainer.devices=1.")
    if made.teacher is not None and not made.recipe.terms().needs_teacher:
        raise RequestError(
            "A teacher is chosen, but no loss term listens to it. Add one, for example 'loss=[cross_entropy,soft_target]', or use teacher=none."
        )


def _control(name: str, node: Config, student: Recipe) -> Control:
    settings = ControlSettings(**node)
    check_control(name, settings)
    asked, role = settings.student or {}, f"controls.{name}.student"
    among = asked.get("among") or {}
    named = asked.get("name") != "auto"
    nodes = [asked] if named else [{**asked, **each} for each in among.values()]
    return Control(
        **{**vars(student), "loss": settings.loss},
        students=tuple(requested(role, {"_target_": FACTORY, **each}, None) for each in nodes if asked),
        named=named,
        as_long=settings.as_long,
        entropy_at=settings.entropy_at,
        shuffled=settings.shuffled,
    )


def _teacher(config: Config, own: OwnParts) -> tuple[ModelRequest | None, Recipe | None]:
    node = config["teacher"]
    if own.teacher is not None:
        return requested("teacher", {"_target_": FACTORY, **(node or {})}, own.teacher), None
    if not node or node.get("_target_") is None:
        return None, None
    if node.get("decay") is not None:
        return OwnAverage(requested("student", config["student"], own.student), OwnAverageTeacher(decay=node["decay"]).decay), None
    made = composed(node)
    if made is not None:
        return made, None
    training = TeacherTraining(max_epochs=node["max_epochs"], seed=node["seed"])
    groups = {key: node[key] for key in ("loss", "optimizer", "scheduler")}
    return requested("teacher", node, None), Recipe(**groups, callbacks={}, max_epochs=training.max_epochs, seed=training.seed)


def _weight(name: str, node: Config) -> float:
    weight = node.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
        raise RequestError(f"loss.{name}.weight={weight!r} does not fit: expected a number, 0 or more.")
    return float(weight)


def _schedule(name: str, node: Any) -> Schedule:
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise RequestError(
            f"loss.{name}.schedule={node!r} does not fit: expected one of scheduler's choices, for example loss.{name}.schedule=warmup, and then "
            f"its settings, for example loss.{name}.schedule.end=0.2."
        )
    made: Schedule = make(node, Schedule)
    return made
