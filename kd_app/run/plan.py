"""The plan of a run, printed before training: the data, each model with its weights and
training, and the estimated duration.
"""

from kd_app.config import InputSpec
from kd_app.models.cost import count_params
from kd_app.models.create import resolve_input
from kd_app.models.spec import ModelSpec, suggest_pretrained_tag
from kd_app.reporting.sentences import write_teacher_labels
from kd_app.run.forecast import Forecast
from kd_app.run.initial_models import InitialModels
from kd_app.run.refit import describe_refit
from kd_app.run.teacher_labels import find_teacher_labels
from kd_app.run.workspace import Workspace
from kd_app.specs.controls import Control
from kd_app.training.job import Recipe


def write_plan(
    workspace: Workspace, models: InitialModels, *, ready: bool, forecast: Forecast | None
) -> str:
    """The plan as text. ready: the teacher is used without training."""
    spec, (student, teacher) = workspace.spec, models
    duration = "an unknown duration" if forecast is None else describe_forecast(forecast)
    loaded = [(spec.student, student)]
    if spec.teacher is not None and teacher is not None:
        loaded.insert(0, (spec.teacher, teacher))
    lines = describe_models(workspace, ready=ready)
    lines.append(
        f"Training: {spec.trainer.precision} on {spec.trainer.world_size} x"
        f" {spec.trainer.accelerator}, {duration}"
    )
    if teacher is not None and count_params(student.model) > count_params(teacher.model) > 0:
        lines.append(
            "Note: the student is larger than its teacher. This is allowed, but it does not reduce"
            " the cost of inference."
        )
    if teacher is not None and _is_stretched(teacher.pixels, student.pixels):
        lines.append(
            "Note: teacher and student have inputs of another shape"
            f" ({teacher.pixels.height}x{teacher.pixels.width} and"
            f" {student.pixels.height}x{student.pixels.width}), so in training the teacher sees the"
            " student's images stretched; teacher.image_size=[height,width] sets the same shape."
        )
    lines += [
        f"Note: the {model.role} {model.name} {note}."
        for model, built in loaded
        for note in built.weights.notes
    ]
    if spec.recipe.freeze and not spec.student.origin.has_weights:
        lines.append(
            "Note: the student starts from random weights, and student.freeze keeps"
            f" {', '.join(spec.recipe.freeze)} random. Choose pretrained weights, or leave"
            " student.freeze out."
        )
    return "\n".join(lines)


def describe_forecast(forecast: Forecast) -> str:
    """'about 12 min for everything that is not cached (11 min of them to train)'."""
    parts = f"{format_seconds(forecast.training)} of them to train"
    if forecast.cache_bytes:
        parts += (
            f", {format_seconds(forecast.caching)} to cache {forecast.cache_bytes / 1e9:.2g} GB of"
            " the teacher's outputs"
        )
    return f"about {format_seconds(forecast.seconds)} for everything that is not cached ({parts})"


def describe_models(workspace: Workspace, *, ready: bool) -> list[str]:
    """A line about the data, one about each model (its initial weights and its
    training), one about a loss that was chosen by ``loss=auto``, one about
    ``data.refit``, and with few labels one about those that the teacher was trained on.
    ready: the teacher is used without training.
    """
    spec, sizes = workspace.spec, workspace.data.sizes
    lines = [
        f"Data: {_describe_classes(workspace)}; images: {sizes['train']:,} to train on,"
        f" {sizes['validation']:,} to choose by, {sizes['test']:,} to test"
        f" on{_describe_data(workspace)}"
    ]
    if spec.teacher is not None:
        recipe = None if ready else spec.teacher_recipe
        lines.append(_describe_model("Teacher", spec.teacher, recipe, workspace))
    for name, control in spec.controls.items():
        line = _describe_model(f"Control {name}", workspace.resolve_spec(name), control, workspace)
        lines.append(line + _compare_cost(workspace, name))
    for number, assistant in enumerate(spec.assistants, start=1):
        lines.append(_describe_model(f"Assistant {number}", assistant.spec, spec.recipe, workspace))
    lines.append(_describe_model("Student", spec.student, spec.recipe, workspace))
    lines.append(workspace.task.describe_plan(spec.teacher))
    lines += [describe_cache(workspace), spec.loss_choice, describe_refit(workspace)]
    labels = write_teacher_labels(find_teacher_labels(workspace, ready=ready))
    lines.append(f"Labels: {labels}" if labels else "")
    return [line for line in lines if line]


def describe_cache(workspace: Workspace) -> str:
    """The line about the teacher's cached outputs; empty if the teacher runs."""
    plan = workspace.cache_plan
    if plan is None:
        return ""
    configured = workspace.spec.config["data"].get("views")
    recycled, most = "", workspace.max_views
    if most is not None and most < (configured or 0):
        recycled = (
            f"; data.views={configured} do not fit into teacher.cache_gb="
            f"{workspace.spec.teacher_outputs.cache_gb:g}, so {most} are used in turn"
        )
    return f"Teacher's outputs: cached as {plan.describe()}{recycled}"


def _describe_classes(workspace: Workspace) -> str:
    number = len(workspace.classes)
    if workspace.task.reads_labels:
        return f"{number} classes"
    return f"labels of {number} classes, to judge by" if number else "no labels"


def _is_stretched(one: InputSpec, other: InputSpec) -> bool:
    """Whether the ratio of height and width differs."""
    return one.height * other.width != one.width * other.height


def _describe_data(workspace: Workspace) -> str:
    """The features of the training data that differ from the default."""
    phrases = list(workspace.data.describe_training())
    return "".join(f"; {phrase}" for phrase in phrases)


def _describe_model(
    title: str, model: ModelSpec, recipe: Recipe | None, workspace: Workspace
) -> str:
    origin, input_spec = model.origin, resolve_input(model, workspace.compute_image_stats())
    weights = {
        "random": "random weights",
        "hub": f"the hub's weights {origin.name}",
        "folder": f"the weights in {origin.path}",
        "file": f"the weights in {origin.path}",
        "own": "its own weights",
    }[origin.kind]
    size = f"{input_spec.height}x{input_spec.width}"
    tag = suggest_pretrained_tag(origin.name) if origin.kind == "random" else ""
    hint = f"; pretrained weights may help: {tag.removeprefix(', for example ')}" if tag else ""
    if recipe is None:
        return f"{title}: {origin.name} as it is, {weights}, {size}"
    verb = "fine-tuned" if origin.has_weights else "trained"
    labeled, few_labels = workspace.data.num_labeled, ""
    if labeled is not None and not recipe.needs_teacher:
        images = f"{labeled:,} images with a label"
        if isinstance(recipe, Control) and recipe.labels_images:
            images = f"{images} and those that it labels"
        few_labels = f", on the {images} in as many steps"
    return f"{title}: {origin.name} {verb} {recipe.how}{few_labels}, from {weights}, {size}{hint}"


def _compare_cost(workspace: Workspace, control: str) -> str:
    """The cost of a model that was chosen by its cost; empty for other models."""
    resolved = workspace.resolved.get(control, {})
    if resolved.get("macs") is None:
        return ""
    macs, student_macs = (resolved[key] / 1e6 for key in ("macs", "student_macs"))
    return f"; {macs:,.2f} M multiply-adds compared with the student's {student_macs:,.2f} M"


def format_seconds(seconds: float) -> str:
    """'12 s', '35 min', '3.2 h'."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
