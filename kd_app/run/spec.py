"""From the configuration to the parts that a run is made of, each checked by its own
signature, and what they allow of each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from torch import nn

from kd_app.config import RequestError
from kd_app.config.make import make
from kd_app.config.targets import FACTORY, check_targets
from kd_app.data.base import RunData, require
from kd_app.data.build import build_data
from kd_app.data.corruptions import Robustness
from kd_app.models.composite import EmaTeacher
from kd_app.models.license import LicenseClaim, Licenses, Policy, resolve_licenses
from kd_app.models.spec import ModelSpec
from kd_app.run.controls import Control, ControlSettings
from kd_app.run.controls import check as check_control
from kd_app.run.latency_budget import LatencyBudget
from kd_app.run.model_specs import Link, build_composite, build_model_spec, parse_assistants
from kd_app.run.schema import (
    DistillSettings,
    EmaSettings,
    LicenseSetting,
    Licensing,
    TeacherOutputs,
    TeacherTraining,
)
from kd_app.run.validation import check_data_use, check_teacher
from kd_app.training.job import Recipe
from kd_app.training.trainer import TrainerSettings

Config = dict[str, Any]


@dataclass(frozen=True)
class ExternalParts:
    """Objects that somebody hands over in a notebook instead of naming them in the
    configuration.
    """

    teacher: nn.Module | None = None
    student: nn.Module | None = None
    data: LightningDataModule | None = None


@dataclass(frozen=True)
class RunSpec:
    """Everything that a run is made of, made and checked before data or weights are
    read.
    """

    config: Config
    data: RunData
    trainer: TrainerSettings
    student: ModelSpec
    recipe: Recipe
    controls: dict[str, Control]
    teacher: ModelSpec | None
    teacher_recipe: Recipe | None
    licenses: Licenses
    robustness: Robustness
    teacher_outputs: Literal["live", "cached"] = "live"
    links: tuple[Link, ...] = ()
    budget: LatencyBudget | None = None
    own: ExternalParts = field(default_factory=ExternalParts)

    def to_json(self) -> Config:
        """What another process needs beside a job to train it: the data and the trainer
        of this run, as plain data.
        """
        trainer = {**self.config["trainer"], **self.trainer.place()}
        return {"data": self.config["data"], "trainer": trainer}


def build_spec(config: Config, own: ExternalParts | None = None) -> RunSpec:
    """Make and check every part of a run's configuration; nothing is read, fetched or
    written.
    """
    DistillSettings(**config)
    check_targets(config, config["allow"])
    made = assemble_parts(config, own or ExternalParts())
    check_trainings(made)
    return made


def assemble_parts(config: Config, own: ExternalParts) -> RunSpec:
    """Make the parts of a run. Recipes stay plain configuration: none of their losses,
    optimizers, schedules and callbacks is made.
    """
    trainer = make(config["trainer"], TrainerSettings)
    if trainer.world_size > 1 and own != ExternalParts():
        raise RequestError(
            "Parts handed over as objects live in this process alone: use trainer.devices=1, or"
            " name them by _target_."
        )
    common = {key: config[key] for key in ("optimizer", "scheduler", "callbacks")}
    recipe = Recipe(
        loss=config["loss"], max_epochs=trainer.max_epochs, seed=config["seed"], **common
    )
    teacher, teacher_recipe = _build_teacher(config, own)
    controls = (
        {name: _build_control(name, node, recipe) for name, node in config["controls"].items()}
        if teacher is not None
        else {}
    )
    data = build_data(config["data"], own.data)
    if trainer.world_size > 1:
        require(
            data,
            "sharded",
            because=f"trainer.devices={trainer.world_size}",
            instead="use trainer.devices=1",
        )
    student = build_model_spec("student", config["student"], own.student)
    links = parse_assistants(config["teacher"])
    if links and (teacher is None or own.teacher is not None):
        raise RequestError(
            "teacher.chain names nets between a teacher and the student, and there is no teacher"
            " that a configuration names."
        )
    robustness = Robustness(**config["robustness"])
    if robustness.chosen:
        require(
            data,
            "uint8",
            because="robustness.corruptions",
            instead="leave corruptions out: robustness=none",
        )
    return RunSpec(
        config=config,
        data=data,
        trainer=trainer,
        student=student,
        recipe=recipe,
        controls=controls,
        teacher=teacher,
        teacher_recipe=teacher_recipe,
        licenses=_resolve_licenses(config, teacher, links, student, data),
        robustness=robustness,
        teacher_outputs=TeacherOutputs(
            outputs=(config["teacher"] or {}).get("outputs", "live")
        ).outputs,
        links=links,
        budget=make(config["budget"], LatencyBudget) if config["budget"] is not None else None,
        own=own,
    )


def _resolve_licenses(
    config: Config,
    teacher: ModelSpec | None,
    links: Sequence[Link],
    student: ModelSpec,
    data: RunData,
) -> Licenses:
    """What the run's weights and images are under, as they say it or, where they don't,
    as the configuration does.
    """
    asked = Licensing(**config["license"])
    name = data.name or str(config["data"].get("name", "images"))
    return resolve_licenses(
        teacher=_claim_weights(teacher, "teacher's weights", config, links) if teacher else None,
        student_start=_claim_weights(student, "student's starting weights", config),
        data=LicenseClaim(
            f"the data ({name})",
            "data.license",
            data.license,
            LicenseSetting(license=config["data"].get("license")).license,
        ),
        accept=asked.accept,
        policy=asked.policy,
    )


def _claim_weights(
    request: ModelSpec, what: str, config: Config, links: Sequence[Link] = ()
) -> LicenseClaim:
    said = LicenseSetting(license=(config[request.role] or {}).get("license")).license
    known = (
        Policy().find_strictest(
            request.origin.license, *(link.request.origin.license for link in links)
        )
        if links
        else request.origin.license
    )
    return LicenseClaim(f"the {what} ({request.name})", f"{request.role}.license", known, said)


def check_trainings(made: RunSpec) -> None:
    """Make the parts of every recipe once, and check that they suit teacher and data.

    Raises `RequestError`.
    """
    for each in (made.recipe, made.teacher_recipe, *made.controls.values()):
        if each is None:
            continue
        terms = each.build_loss()
        each.make_optimizer().check_place(made.trainer.world_size, made.trainer.precision)
        each.make_schedule()
        each.make_callbacks()
        check_teacher(
            terms, None if each is made.teacher_recipe else made.teacher, chained=bool(made.links)
        )
    if isinstance(made.teacher, EmaTeacher) and made.trainer.world_size > 1:
        raise RequestError(
            "teacher=ema follows the student of one process, and"
            f" trainer.devices={made.trainer.world_size}. Use trainer.devices=1."
        )
    if made.teacher is not None and not made.recipe.needs_teacher:
        raise RequestError(
            "A teacher is chosen, but no loss term listens to it. Add one, for example"
            " 'loss=[cross_entropy,soft_target]', or use teacher=none."
        )
    listening = (
        {
            name: each.build_loss()
            for name, each in {**made.controls, "student": made.recipe}.items()
        }
        if made.teacher is not None
        else {}
    )
    check_data_use(
        made.data,
        made.teacher_outputs,
        {name: terms for name, terms in listening.items() if terms.needs_teacher},
        [name for name, control in made.controls.items() if control.shuffle_teacher_images],
    )


def _build_control(name: str, node: Config, student: Recipe) -> Control:
    settings = ControlSettings(**node)
    check_control(name, settings)
    asked, role = settings.student or {}, f"controls.{name}.student"
    candidates = asked.get("candidates") or {}
    named = asked.get("name") != "auto"
    nodes = [asked] if named else [{**asked, **each} for each in candidates.values()]
    return Control(
        **{**student.to_json(), "loss": settings.loss},
        students=tuple(
            build_model_spec(role, {"_target_": FACTORY, **each}, None) for each in nodes if asked
        ),
        named=named,
        match_wall_time=settings.match_wall_time,
        label_entropy_temperature=(
            next(iter(student.label_temperatures), 1.0)
            if settings.label_entropy_temperature == "auto"
            else settings.label_entropy_temperature
        ),
        shuffle_teacher_images=settings.shuffle_teacher_images,
    )


def _build_teacher(config: Config, own: ExternalParts) -> tuple[ModelSpec | None, Recipe | None]:
    node = config["teacher"]
    if own.teacher is not None:
        return build_model_spec("teacher", {"_target_": FACTORY, **(node or {})}, own.teacher), None
    if not node or node.get("_target_") is None:
        return None, None
    if node.get("decay") is not None:
        return (
            EmaTeacher(
                build_model_spec("student", config["student"], own.student),
                EmaSettings(decay=node["decay"]).decay,
            ),
            None,
        )
    made = build_composite(node)
    if made is not None:
        return made, None
    training = TeacherTraining(max_epochs=node["max_epochs"], seed=node["seed"])
    groups = {key: node[key] for key in ("loss", "optimizer", "scheduler")}
    return build_model_spec("teacher", node, None), Recipe(
        **groups, callbacks={}, max_epochs=training.max_epochs, seed=training.seed
    )
