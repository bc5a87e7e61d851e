"""What is about to happen, said before it does: which models from which weights, on
what, for how long.
"""

from kd_app.models.cost import count_params
from kd_app.models.create import LoadedModel, create, resolve_input
from kd_app.models.spec import ModelSpec, suggest_pretrained_tag
from kd_app.run.workspace import Workspace
from kd_app.training.job import Recipe
from kd_app.training.timing import StepEstimate, count_steps_per_epoch, estimate


def write_plan(shop: Workspace, *, ready: bool) -> str:
    """The plan as text; `ready`: the teacher is used as it is. Its times come from a
    few steps of each model on noise.
    """
    made, steps = shop.spec, count_steps_per_epoch(shop.data, shop.spec.trainer).training
    teacher = None if made.teacher is None else _load(shop, made.teacher)
    student = _load(shop, made.student)
    total = 0.0
    answers = 0.0
    if teacher is not None:
        seconds = _estimate(shop, teacher, train=not ready)
        answers = seconds.inference
        if made.teacher_recipe and not ready:
            total += made.teacher_recipe.max_epochs * steps * seconds.training
    learn = _estimate(shop, student, train=True).training
    student_seconds = made.recipe.max_epochs * steps * (learn + answers)
    for name, control in made.controls.items():
        request = shop.resolve_spec(name)
        own = (
            learn
            if request is made.student
            else _estimate(shop, _load(shop, request), train=True).training
        )
        total += (
            student_seconds
            if control.match_wall_time
            else control.max_epochs * steps * (own + (answers if control.needs_teacher else 0.0))
        )
    total += student_seconds * (1 + len(made.links))
    lines = describe_models(shop, ready=ready)
    lines.append(
        f"Training: {made.trainer.precision} on {made.trainer.world_size} x"
        f" {made.trainer.accelerator}, about {format_seconds(total)} for what is not found"
    )
    larger = teacher is not None and count_params(student.model) > count_params(teacher.model) > 0
    return "\n".join(
        lines
        + (
            [
                "Note: the student is larger than its teacher. That is allowed; the gain in cost"
                " will not be one."
            ]
            if larger
            else []
        )
    )


def describe_models(shop: Workspace, *, ready: bool) -> list[str]:
    """The data, and each model with the weights it starts from and what it is trained
    on; `ready`: the teacher is used as it is.
    """
    made, sizes = shop.spec, shop.data.sizes
    lines = [
        f"Data: {len(shop.classes)} classes; images: {sizes['train']:,} to train on,"
        f" {sizes['validation']:,} to choose by, {sizes['test']:,} to test on{_describe_data(shop)}"
    ]
    if made.teacher is not None:
        lines.append(
            _describe_model(
                "JobTeacher", made.teacher, None if ready else made.teacher_recipe, shop
            )
        )
    lines += [
        _describe_model(f"Control {name}", shop.resolve_spec(name), control, shop)
        + _compare_cost(shop, name)
        for name, control in made.controls.items()
    ]
    lines += [
        _describe_model(f"Link {number}", link.request, made.recipe, shop)
        for number, link in enumerate(made.links, start=1)
    ]
    return [*lines, _describe_model("Student", made.student, made.recipe, shop)]


def _describe_data(shop: Workspace) -> str:
    """What is special about the images of a training."""
    stored = (
        ("the teacher's answers to these views are stored",)
        if shop.spec.teacher_outputs == "cached"
        else ()
    )
    return "".join(f"; {phrase}" for phrase in (*shop.data.describe_training(), *stored))


def _describe_model(who: str, request: ModelSpec, recipe: Recipe | None, shop: Workspace) -> str:
    origin, pixels = request.origin, resolve_input(request, shop.image_stats())
    weights = {
        "random": "random weights",
        "hub": f"the hub's weights {origin.name}",
        "folder": f"the weights in {origin.path}",
        "file": f"the weights in {origin.path}",
        "own": "its own weights",
    }[origin.kind]
    better = suggest_pretrained_tag(origin.name) if origin.kind == "random" else ""
    hint = f"; a better start may be {better.removeprefix(', for example ')}" if better else ""
    if recipe is None:
        return f"{who}: {origin.name} as it is, {weights}, {pixels.height}x{pixels.width}"
    verb = "fine-tuned" if origin.has_weights else "trained"
    few, labeled = "", shop.data.num_labeled
    if labeled is not None and not recipe.needs_teacher:
        few = f", on the {labeled:,} images with a label in as many steps"
    return (
        f"{who}: {origin.name} {verb} {recipe.how}{few}, from {weights},"
        f" {pixels.height}x{pixels.width}{hint}"
    )


def _compare_cost(shop: Workspace, control: str) -> str:
    """Where the net was chosen by its cost, that."""
    macs = shop.resolved.get(control, {}).get("macs")
    return (
        ""
        if macs is None
        else (
            f"; {macs / 1e6:,.2f} M multiply-adds beside the student's"
            f" {shop.resolved[control]['student_macs'] / 1e6:,.2f} M"
        )
    )


def _load(shop: Workspace, request: ModelSpec) -> LoadedModel:
    return create(request, resolve_input(request, shop.image_stats()), len(shop.classes), seed=0)


def _estimate(shop: Workspace, created: LoadedModel, *, train: bool) -> StepEstimate:
    return estimate(
        created.model, created.pixels, shop.data.batch_size, shop.spec.trainer, train=train
    )


def format_seconds(seconds: float) -> str:
    """'12 s', '35 min', '3.2 h'."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
