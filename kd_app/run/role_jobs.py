"""The training job of each role of a run: teacher, controls, student.

All other modules of the training are independent of roles.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kd_app.config import InputSpec, RequestError
from kd_app.config.records import read_record
from kd_app.data.base import RunData
from kd_app.data.partners import PartnerKind
from kd_app.models.create import resolve_input
from kd_app.models.spec import ModelSpec
from kd_app.run.initial_models import InitialModels, load_untrained
from kd_app.run.model import RunModel
from kd_app.run.pseudo_labels import cache_pseudo_labels
from kd_app.run.teacher_views import cache_teacher_views
from kd_app.run.workspace import Workspace
from kd_app.specs.controls import compute_mean_entropy
from kd_app.training.fit import build
from kd_app.training.job import JobTeacher, Recipe, TrainingJob, is_imbalanced
from kd_app.training.single_image import check_single_image
from kd_app.training.timing import (
    EPOCHS,
    MatchedEpochs,
    count_steps_per_epoch,
    match_wall_time,
)


def build_teacher_job(workspace: Workspace) -> TrainingJob:
    """The job that trains the teacher on labels."""
    model, recipe = workspace.spec.teacher, workspace.spec.teacher_recipe
    assert model is not None
    assert recipe is not None
    job = _build_job(workspace, "teacher", model, recipe, None)
    return replace(
        job, fresh_views=True, license=workspace.resolve_license("teacher", uses_teacher=False)
    )


def build_control_job(workspace: Workspace, name: str, teacher: RunModel) -> TrainingJob:
    """The job of a control.

    Settings that depend on the teacher's logits or on wall time, and pseudo-labels, are
    cached as stages.
    """
    confidence = workspace.spec.controls[name].pseudo_label_confidence
    job = _build_control(workspace, name, _resolve_recipe(workspace, name, teacher), teacher)
    if confidence is None:
        return job
    return replace(job, pseudo_labels=cache_pseudo_labels(workspace, job, confidence))


def build_student_job(
    workspace: Workspace,
    teacher: RunModel | None,
    *,
    name: str = "student",
    model: ModelSpec | None = None,
    recipe: Recipe | None = None,
) -> TrainingJob:
    """The job of the student, or a similar job with another `name`, model or recipe."""
    recipe = recipe or workspace.spec.recipe
    if model is not None:
        # its layers have other names than those of the student
        recipe = replace(recipe, freeze=[])
    job = _build_job(workspace, name, model or workspace.spec.student, recipe, teacher)
    license = workspace.resolve_license("student", uses_teacher=job.teacher is not None)
    return replace(job, license=license)


def draft_role_job(workspace: Workspace, role: str) -> TrainingJob:
    """The job of a role without a teacher; settings that a control computes from the
    teacher stay as configured, and there are no pseudo-labels.
    """
    if role == "teacher":
        return build_teacher_job(workspace)
    control = workspace.spec.controls.get(role)
    if control is not None:
        return _build_control(workspace, role, control.as_recipe(), None)
    return build_student_job(workspace, None)


def check_pair(workspace: Workspace, models: InitialModels) -> None:
    """Build the student's loss for teacher and student before either is trained.

    Raises `RequestError` if a loss term can't compare the two models.
    """
    spec, (student, teacher) = workspace.spec, models
    if spec.teacher is None or teacher is None:
        return
    job = TrainingJob(
        "student",
        spec.student,
        student.pixels,
        spec.recipe,
        JobTeacher(spec.teacher, teacher),
        task=workspace.task,
    )
    build(job, student, workspace.data, spec.trainer)


def check_batches(workspace: Workspace, *, ready: bool) -> None:
    """Raise `RequestError` if the last training batch of an epoch is one image, which a
    model of the run can't be trained on. ready: the teacher is not trained.
    """
    spec, data = workspace.spec, workspace.data
    all_batches = data.count_steps_per_epoch(spec.trainer.world_size)[0]
    if count_steps_per_epoch(data, spec.trainer).training < all_batches:
        return
    trained = {role: workspace.resolve_spec(role) for role in (*spec.controls, "student")}
    if spec.teacher is not None and not ready:
        trained = {"teacher": spec.teacher, **trained}
    for role, model in trained.items() if data.smallest_batch == 1 else ():
        loaded = load_untrained(workspace, model)
        check_single_image(loaded.model, loaded.pixels, role)


def balance_classes(recipe: Recipe, data: RunData) -> Recipe:
    """The recipe with numbers, or none, in place of ``class_weights=balanced`` and
    ``class_weights=auto``.

    Raises `RequestError` for 'balanced' if the labels of the training images are not
    known.
    """
    if not recipe.counts_classes:
        return recipe
    counts = data.count_labels()
    if counts is None and recipe.is_balanced:
        raise RequestError(
            "class_weights=balanced needs the labels of all training images, which a data module"
            " of your own does not list. Set one positive number per class, for example"
            f" class_weights=[{','.join(['1'] * min(len(data.classes), 3))}]."
        )
    return recipe.balance_classes([] if counts is None else counts.tolist())


def note_class_weights(workspace: Workspace) -> list[str]:
    """A sentence if ``class_weights=auto`` weights the classes."""
    spec, counts = workspace.spec, workspace.data.count_labels()
    recipes = (spec.teacher_recipe, spec.recipe)
    is_auto = any(each and each.counts_classes and not each.is_balanced for each in recipes)
    if counts is None or not is_auto or not is_imbalanced(counts.tolist()):
        return []
    return [
        f"the largest class has {counts.max():,} labeled training images and the smallest"
        f" {counts[counts > 0].min():,}, so the labels of rare classes count more"
        " (loss.cross_entropy.class_weights=auto; null: all images count alike). Top-1 accuracy"
        " can be lower for it, balanced accuracy is higher."
    ]


def _build_control(
    workspace: Workspace, name: str, recipe: Recipe, teacher: RunModel | None
) -> TrainingJob:
    control = workspace.spec.controls[name]
    job = _build_job(
        workspace,
        name,
        workspace.resolve_spec(name),
        recipe,
        teacher,
        partners=control.partners,
    )
    uses_teacher = job.teacher is not None and control.partners != "view"
    license = workspace.resolve_license(name, uses_teacher=uses_teacher)
    return replace(job, license=license)


def _build_job(
    workspace: Workspace,
    name: str,
    model: ModelSpec,
    recipe: Recipe,
    teacher: RunModel | None,
    *,
    partners: PartnerKind | None = None,
) -> TrainingJob:
    """A job with the `teacher` if the recipe needs one. partners: see `TrainingJob`."""
    input_spec = resolve_input(model, workspace.compute_image_stats())
    recipe = balance_classes(recipe, workspace.data)
    job_teacher = (
        _build_teacher(workspace, teacher, input_spec, recipe, partners)
        if teacher is not None and recipe.needs_teacher
        else None
    )
    return TrainingJob(
        name,
        model,
        input_spec,
        recipe,
        job_teacher,
        partners=partners,
        task=workspace.task,
    )


def _build_teacher(
    workspace: Workspace,
    teacher: RunModel,
    student_input: InputSpec,
    recipe: Recipe,
    partners: PartnerKind | None,
) -> JobTeacher:
    # Logits for a part of the validation split would give other metrics.
    is_measured = not teacher.no_metrics_reason and (
        workspace.limit is None or not workspace.task.reads_labels
    )
    return JobTeacher(
        teacher.spec,
        teacher.loaded,
        teacher.folder,
        validation_logits=(
            workspace.cache_predictions(teacher, "validation") if is_measured else None
        ),
        cached=(
            cache_teacher_views(
                workspace, teacher, student_input, recipe, sees_partners=partners is not None
            )
            if workspace.spec.teacher_outputs.is_cached and partners != "view"
            else None
        ),
    )


def _resolve_recipe(workspace: Workspace, name: str, teacher: RunModel) -> Recipe:
    """The recipe of a control, with the label smoothing and the number of epochs that
    depend on the teacher and on wall time.
    """
    control = workspace.spec.controls[name]
    recipe = control.as_recipe()
    if control.label_entropy_temperature is not None:
        entropy = compute_mean_entropy(
            workspace.load_predictions(teacher, "train").logits, control.label_entropy_temperature
        )
        recipe = control.smooth_labels(entropy, len(workspace.classes))
        workspace.resolved.setdefault(name, {}).update(
            teacher_entropy=entropy, temperature=control.label_entropy_temperature, loss=recipe.loss
        )
    if control.match_wall_time:
        matched = _match_wall_time(workspace, name, teacher, recipe)
        recipe = replace(recipe, max_epochs=matched["max_epochs"])
        workspace.resolved.setdefault(name, {}).update(matched)
    return recipe


def _match_wall_time(
    workspace: Workspace, name: str, teacher: RunModel, recipe: Recipe
) -> Mapping[str, Any]:
    """The number of epochs of `recipe` that take as long as the student's training.

    All seeds of a recipe share the measurement.
    """
    data, trainer = workspace.data, workspace.spec.trainer
    jobs = {
        "student": build_student_job(workspace, teacher),
        name: _build_control(workspace, name, recipe, teacher),
    }
    config = {
        key: {
            part: value
            for part, value in job.describe_identity(data, trainer).items()
            if part != "seed"
        }
        for key, job in jobs.items()
    }
    inputs = {"data": data.fingerprint, "teacher": teacher.loaded.weights.sha256}

    def measure(folder: Path) -> None:
        workspace.console.print_transient(f"  {name}: measuring the duration of an epoch ...")
        match_wall_time(workspace.spec.recipe.max_epochs, jobs, data, trainer, folder)

    stage = workspace.find_or_build(f"epochs-{name}", config, inputs, measure)
    return read_record(
        stage.path / EPOCHS, MatchedEpochs, expected=f"Set remake=[epochs-{name}] to measure again."
    )
