"""What is about to happen, said before it does: which models from which weights, on
what, for how long.
"""

import time

import torch

from kd_app.models.cost import count_params
from kd_app.models.create import create, expected_pixels
from kd_app.models.request import ModelRequest, better_start
from kd_app.training.job import Recipe
from kd_app.training.workshop import Workshop

_STEPS = 3


def plan(shop: Workshop, *, ready: bool) -> str:
    """The plan as text; `ready`: the teacher is used as it is. Its times come from a
    few steps of each model on noise.
    """
    made, steps = shop.parts, steps_an_epoch(shop)
    total = 0.0
    answers = 0.0
    if made.teacher is not None:
        learn, answers = noise_seconds(shop, made.teacher, train=not ready)
        total += (
            made.teacher_recipe.max_epochs * steps * learn
            if made.teacher_recipe and not ready
            else 0
        )
    learn, _ = noise_seconds(shop, made.student, train=True)
    student = made.recipe.max_epochs * steps * (learn + answers)
    for name, control in made.controls.items():
        request = shop.request(name)
        own = learn if request is made.student else noise_seconds(shop, request, train=True)[0]
        total += (
            student
            if control.as_long
            else control.max_epochs * steps * (own + (answers if control.needs_teacher else 0.0))
        )
    total += student * (1 + len(made.links))
    lines = described(shop, ready=ready)
    lines.append(
        f"Training: {made.trainer.precision} on {made.trainer.world_size} x"
        f" {made.trainer.accelerator}, about {spoken(total)} for what is not found"
    )
    larger = (
        made.teacher is not None and _params(shop, made.student) > _params(shop, made.teacher) > 0
    )
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


def described(shop: Workshop, *, ready: bool) -> list[str]:
    """The data, and each model with the weights it starts from and what it is trained
    on; `ready`: the teacher is used as it is.
    """
    made, sizes = shop.parts, shop.data.sizes
    lines = [
        f"Data: {len(shop.classes)} classes; images: {sizes['train']:,} to train on,"
        f" {sizes['validation']:,} to choose by, {sizes['test']:,} to test on{_describe_data(shop)}"
    ]
    if made.teacher is not None:
        lines.append(_line("Teacher", made.teacher, None if ready else made.teacher_recipe, shop))
    lines += [
        _line(f"Control {name}", shop.request(name), control, shop) + _beside(shop, name)
        for name, control in made.controls.items()
    ]
    lines += [
        _line(f"Link {number}", link.request, made.recipe, shop)
        for number, link in enumerate(made.links, start=1)
    ]
    return [*lines, _line("Student", made.student, made.recipe, shop)]


def _describe_data(shop: Workshop) -> str:
    """What is special about the images of a training."""
    stored = (
        ("the teacher's answers to these views are stored",)
        if shop.parts.answers == "stored"
        else ()
    )
    return "".join(f"; {phrase}" for phrase in (*shop.data.describe_training(), *stored))


def steps_an_epoch(shop: Workshop) -> int:
    """Batches of an epoch, within the limits that are set."""
    trainer = shop.parts.trainer
    steps, _ = shop.data.steps_per_epoch(trainer.world_size)
    limit = trainer.limits["overfit_batches"] or trainer.limits["limit_train_batches"]
    return min(steps, limit) if isinstance(limit, int) else max(1, int(steps * (limit or 1)))


def _line(who: str, request: ModelRequest, recipe: Recipe | None, shop: Workshop) -> str:
    origin, pixels = request.origin, expected_pixels(request, shop.seen())
    weights = {
        "random": "random weights",
        "hub": f"the hub's weights {origin.name}",
        "folder": f"the weights in {origin.path}",
        "file": f"the weights in {origin.path}",
        "own": "its own weights",
    }[origin.kind]
    better = better_start(origin.name) if origin.kind == "random" else ""
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


def _beside(shop: Workshop, control: str) -> str:
    """Where the net was chosen by its cost, that."""
    macs = shop.decided.get(control, {}).get("macs")
    return (
        ""
        if macs is None
        else (
            f"; {macs / 1e6:,.2f} M multiply-adds beside the student's"
            f" {shop.decided[control]['student_macs'] / 1e6:,.2f} M"
        )
    )


def noise_seconds(shop: Workshop, request: ModelRequest, *, train: bool) -> tuple[float, float]:
    """Seconds of a training step, and of answering a batch, on noise."""
    pixels = expected_pixels(request, shop.seen())
    device, precision = shop.parts.trainer.device, shop.parts.trainer.precision
    model = (
        create(request, pixels, len(shop.classes), seed=0)
        .model.to(device)
        .to(memory_format=torch.channels_last)
    )
    image = torch.rand(shop.data.batch_size, pixels.channels, pixels.height, pixels.width).to(
        device, memory_format=torch.channels_last
    )
    dtype = torch.bfloat16 if "bf16" in precision else torch.float16
    with torch.autocast(device.type, dtype=dtype, enabled="mixed" in precision):
        learn = (
            _timed(lambda: model(image).float().square().mean().backward(), device)
            if train
            else 0.0
        )
        with torch.no_grad():
            return learn, _timed(lambda: model(image), device)


def _timed(body: object, device: torch.device) -> float:
    assert callable(body)
    body()
    start = time.perf_counter()
    for _ in range(_STEPS):
        body()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / _STEPS


def _params(shop: Workshop, request: ModelRequest) -> int:
    return count_params(
        create(request, expected_pixels(request, shop.seen()), len(shop.classes), seed=0).model
    )


def spoken(seconds: float) -> str:
    """'12 s', '35 min', '3.2 h'."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
