"""Build the specification of a run from its configuration: every part is validated by
its own signature, and the parts are checked against each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightning.pytorch import LightningDataModule
from torch import nn

from kd_app.config import RequestError
from kd_app.config.make import make
from kd_app.config.targets import FACTORY
from kd_app.data.base import RunData, require
from kd_app.data.build import build_data
from kd_app.data.corruptions import RobustnessSettings
from kd_app.losses.distillation_loss import DistillationLoss
from kd_app.models.composite import EmaTeacher
from kd_app.models.license import LicenseClaim, Policy, RunLicenses, resolve_licenses
from kd_app.models.spec import ModelSpec
from kd_app.specs.control_choice import resolve_controls
from kd_app.specs.controls import Control, ControlSettings
from kd_app.specs.controls import check as check_control
from kd_app.specs.latency_budget import LatencyBudget
from kd_app.specs.loss_choice import resolve_loss
from kd_app.specs.model_specs import (
    AssistantSpec,
    build_composite,
    build_model_spec,
    check_own_name,
    parse_assistants,
)
from kd_app.specs.schema import (
    DistillSettings,
    EmaSettings,
    FreezeSetting,
    LicenseSetting,
    Licensing,
    RefitSetting,
    TeacherOutputs,
    TeacherTraining,
)
from kd_app.specs.task_choice import fill_task, resolve_task
from kd_app.specs.validation import check_data_use, check_teacher
from kd_app.tasks.base import Task
from kd_app.tasks.classification import CLASSIFICATION
from kd_app.training.freeze import BACKBONE
from kd_app.training.job import Recipe
from kd_app.training.trainer import TrainerSettings

Config = dict[str, Any]


@dataclass(frozen=True)
class ExternalParts:
    """Objects passed from Python in place of the configured ones."""

    teacher: nn.Module | None = None
    student: nn.Module | None = None
    data: LightningDataModule | None = None


@dataclass(frozen=True)
class RunSpec:
    """The validated parts of a run, built before data or weights are read. task: see
    `resolve_task`.

    config: with the chosen terms in place of ``loss=auto``. loss_choice: see
    `LossChoice.sentence`.
    """

    config: Config
    data: RunData
    trainer: TrainerSettings
    student: ModelSpec
    recipe: Recipe
    controls: dict[str, Control]
    teacher: ModelSpec | None
    teacher_recipe: Recipe | None
    licenses: RunLicenses
    robustness: RobustnessSettings
    teacher_outputs: TeacherOutputs = field(default_factory=lambda: TeacherOutputs.read(None))
    assistants: tuple[AssistantSpec, ...] = ()
    budget: LatencyBudget | None = None
    external: ExternalParts = field(default_factory=ExternalParts)
    loss_choice: str = ""
    task: Task = CLASSIFICATION

    def build_teacher_losses(self) -> dict[str, DistillationLoss]:
        """By role, the losses that read the teacher."""
        if self.teacher is None:
            return {}
        recipes = {**self.controls, "student": self.recipe}
        return {
            name: recipe.build_loss() for name, recipe in recipes.items() if recipe.needs_teacher
        }

    def to_json(self) -> Config:
        """The data and the trainer as plain data, which another process needs in
        addition to a job.
        """
        trainer = {**self.config["trainer"], **self.trainer.describe_devices()}
        return {"data": self.config["data"], "trainer": trainer}


def build_spec(config: Config, external: ExternalParts | None = None) -> RunSpec:
    """Build and validate every part of a run without reading or writing anything."""
    external = external or ExternalParts()
    config = resolve_controls(resolve_task(config).config)
    config, sentence = resolve_loss(config, teacher=external.teacher, student=external.student)
    DistillSettings(**fill_task(config))
    spec = replace(assemble_spec(config, external), loss_choice=sentence)
    check_recipes(spec)
    return spec


def assemble_spec(config: Config, external: ExternalParts) -> RunSpec:
    """Build the parts of a run. Recipes stay plain configuration: their losses,
    optimizers, schedules and callbacks are not built.
    """
    task, config = resolve_task(config)
    trainer = make(config["trainer"], TrainerSettings)
    if trainer.world_size > 1 and external != ExternalParts():
        raise RequestError(
            "Objects passed from Python can't be sent to other processes. Use trainer.devices=1, or"
            " configure the objects with _target_."
        )
    common = {key: config[key] for key in ("optimizer", "scheduler", "callbacks")}
    recipe = Recipe(
        loss=config["loss"],
        max_epochs=trainer.max_epochs,
        seed=config["seed"],
        freeze=FreezeSetting(freeze=config["student"].get("freeze")).freeze,
        **common,
    )
    teacher, teacher_recipe = _build_teacher(config, external, task)
    if not task.reads_labels:
        # the teacher is used as it is
        teacher_recipe = None
    controls = (
        {
            name: _build_control(name, node, recipe, task)
            for name, node in config["controls"].items()
        }
        if teacher is not None
        else {}
    )
    robustness = RobustnessSettings(**config["robustness"])
    data = _build_data(config, external, trainer, robustness)
    student = build_model_spec("student", config["student"], external.student)
    assistants = parse_assistants(config["teacher"])
    if assistants and (teacher is None or external.teacher is not None):
        raise RequestError(
            "teacher.chain needs a teacher from the configuration, and there is none. Choose a"
            " teacher (teacher=timm), or remove teacher.chain."
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
        licenses=_resolve_licenses(config, teacher, assistants, student, data),
        robustness=robustness,
        teacher_outputs=TeacherOutputs.read(config["teacher"]),
        assistants=assistants,
        budget=make(config["budget"], LatencyBudget) if config["budget"] is not None else None,
        external=external,
        task=task,
    )


def _build_data(
    config: Config,
    external: ExternalParts,
    trainer: TrainerSettings,
    robustness: RobustnessSettings,
) -> RunData:
    """The data. Raises `RequestError` if the trainer or the corruptions need a
    capability that the data lack.
    """
    data = build_data(config["data"], external.data)
    if trainer.world_size > 1:
        require(
            data,
            "sharded",
            because=f"trainer.devices={trainer.world_size}",
            instead="use trainer.devices=1",
        )
    if RefitSetting.read(config["data"]):
        require(data, "options", because="data.refit=true", instead="set data.refit=false")
    if robustness.chosen:
        require(
            data,
            "uint8",
            because="robustness.corruptions",
            instead="leave corruptions out: robustness=none",
        )
    return data


def _resolve_licenses(
    config: Config,
    teacher: ModelSpec | None,
    assistants: Sequence[AssistantSpec],
    student: ModelSpec,
    data: RunData,
) -> RunLicenses:
    """The licenses of the run's weights and images: from their metadata, otherwise from
    the configuration.
    """
    settings = Licensing(**config["license"])
    name = data.name or str(config["data"].get("name", "images"))
    return resolve_licenses(
        teacher=(
            _claim_weights(teacher, "teacher's weights", config, assistants) if teacher else None
        ),
        student_start=_claim_weights(student, "student's starting weights", config),
        data=LicenseClaim(
            f"the data ({name})",
            "data.license",
            data.license,
            LicenseSetting(license=config["data"].get("license")).license,
        ),
        accept=settings.accept,
        policy=settings.policy,
    )


def _claim_weights(
    model: ModelSpec, title: str, config: Config, assistants: Sequence[AssistantSpec] = ()
) -> LicenseClaim:
    """The license of a model's weights; the strictest one of the model and the
    assistants.
    """
    configured = LicenseSetting(license=(config[model.role] or {}).get("license")).license
    license = model.origin.license
    if assistants:
        others = (assistant.spec.origin.license for assistant in assistants)
        license = Policy().find_strictest(license, *others)
    return LicenseClaim(f"the {title} ({model.name})", f"{model.role}.license", license, configured)


def check_recipes(spec: RunSpec) -> None:
    """Build the parts of every recipe once, and check them against teacher and data.

    Raises `RequestError`.
    """
    for recipe in (spec.recipe, spec.teacher_recipe, *spec.controls.values()):
        if recipe is None:
            continue
        loss = recipe.build_loss()
        recipe.make_optimizer().check_place(spec.trainer.world_size, spec.trainer.precision)
        recipe.make_schedule()
        recipe.make_callbacks(spec.task)
        # The teacher itself is trained without a teacher.
        teacher = None if recipe is spec.teacher_recipe else spec.teacher
        check_teacher(loss, teacher, chained=bool(spec.assistants))
        if recipe is not spec.teacher_recipe:
            spec.task.check_loss(loss.chosen, "student" if recipe is spec.recipe else "controls")
    if isinstance(spec.teacher, EmaTeacher) and spec.trainer.world_size > 1:
        raise RequestError(
            f"teacher=ema supports one process, got trainer.devices={spec.trainer.world_size}. Use"
            " trainer.devices=1."
        )
    if spec.teacher is not None and not spec.recipe.needs_teacher:
        raise RequestError(
            "A teacher is chosen, but no loss term reads it. Add such a term, for example"
            " 'loss=[cross_entropy,soft_target]', or use teacher=none."
        )
    partners = {name: control.partners for name, control in spec.controls.items()}
    labeling = [name for name, control in spec.controls.items() if control.labels_images]
    check_data_use(
        spec.data,
        spec.teacher_outputs,
        spec.build_teacher_losses(),
        partners,
        labeling,
        task=spec.task,
    )


def _build_control(name: str, node: Config, student: Recipe, task: Task) -> Control:
    settings = ControlSettings(**node)
    check_control(name, settings, task)
    model, role = settings.student or {}, f"controls.{name}.student"
    candidates = model.get("candidates") or {}
    named = model.get("name") != "auto"
    nodes = [model] if named else [{**model, **candidate} for candidate in candidates.values()]
    students = (
        tuple(build_model_spec(role, {"_target_": FACTORY, **each}, None) for each in nodes)
        if model
        else ()
    )
    temperature = (
        next(iter(student.label_temperatures), 1.0)
        if settings.label_entropy_temperature == "auto"
        else settings.label_entropy_temperature
    )
    # the names of layers are those of the student's own architecture
    freeze = student.freeze if not model or student.freeze == [BACKBONE] else []
    return Control(
        **{**student.to_json(), "loss": settings.loss, "freeze": freeze},
        students=students,
        named=named,
        match_wall_time=settings.match_wall_time,
        label_entropy_temperature=temperature,
        partners="view" if settings.self_supervised else settings.shuffle_teacher_images,
        pseudo_label_confidence=settings.pseudo_label_confidence,
    )


def _build_teacher(
    config: Config, external: ExternalParts, task: Task
) -> tuple[ModelSpec | None, Recipe | None]:
    """The teacher, and the recipe of its training if it can be trained."""
    node = config["teacher"]
    if external.teacher is not None:
        node = {"_target_": FACTORY, **(node or {})}
        return build_model_spec("teacher", node, external.teacher), None
    if not node or node.get("_target_") is None:
        return None, None
    if node.get("decay") is not None:
        check_own_name(node, "ema")
        student = build_model_spec("student", config["student"], external.student)
        return EmaTeacher(student, EmaSettings(decay=node["decay"]).decay), None
    composite = build_composite(node, task.output)
    if composite is not None:
        return composite, None
    training = TeacherTraining(max_epochs=node["max_epochs"], seed=node["seed"])
    groups = {key: node[key] for key in ("loss", "optimizer", "scheduler")}
    recipe = Recipe(**groups, callbacks={}, max_epochs=training.max_epochs, seed=training.seed)
    return build_model_spec("teacher", node, None), recipe
