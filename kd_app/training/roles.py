"""How a role of a run (the teacher, a control, the student) is trained: as a stage,
made once and found again by what decides the weights.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kd_app.config import Pixels
from kd_app.models.composed import OwnAverage
from kd_app.models.create import create, expected_pixels
from kd_app.training.controls import mean_entropy
from kd_app.training.curves import points
from kd_app.training.fit import RECORD, Taught, build, fit, resumed, trained
from kd_app.training.module import Answers
from kd_app.training.pace import FILE as EPOCHS
from kd_app.training.pace import as_long
from kd_app.training.ranks.start import fit_on_ranks
from kd_app.training.recipe import Recipe
from kd_app.training.stored import STORED, StoredAnswers, store
from kd_app.training.workshop import Member, Workshop, told


def train(
    shop: Workshop, role: str, teacher: Member | None = None, *, stage: str | None = None
) -> Member:
    """Train the teacher, a control or the student, or find the one that was trained in
    the same way; `stage` is its name if not the role.
    """
    recipe = _settled(shop, role, teacher)
    teacher = teacher if recipe.terms().needs_teacher else None
    own = taught(shop, role, teacher, recipe)
    name = stage or role
    made = shop.make(
        name,
        identity(shop, own, teacher),
        _inputs(shop, own, teacher),
        lambda folder: _fit(shop, own, teacher, folder, name),
    )
    member = _left(shop, own, made.path)
    shop.tracker.ready(
        name, told(member), told(teacher) if teacher else None, lambda: points(made.path)
    )
    return member


def already_trained(shop: Workshop, role: str) -> Member | None:
    """The teacher, or a control that needs none, as an earlier run left it; None where
    `train` may have to train it.
    """
    own = taught(shop, role, None, plain_recipe(shop, role))
    stage = shop.find(role, identity(shop, own, None), _inputs(shop, own, None))
    return _left(shop, own, stage.path) if stage else None


def check_pair(shop: Workshop) -> None:
    """Let the student's terms look at both models before either is trained. Raises
    `RequestError` where a term can't compare them.
    """
    parts = shop.parts
    if parts.teacher is not None:
        teacher, student = (
            create(request, expected_pixels(request, shop.seen()), len(shop.classes), seed=0)
            for request in (parts.teacher, parts.student)
        )
        build(
            Taught("student", parts.student, student.pixels, parts.recipe, teacher),
            student,
            shop.data,
            parts.trainer,
        )


def plain_recipe(shop: Workshop, role: str) -> Recipe:
    """How a role is trained, as far as it is known before there is a teacher."""
    control = shop.parts.controls.get(role)
    return control.plain() if control else _settled(shop, role, None)


def taught(
    shop: Workshop, role: str, teacher: Member | None, recipe: Recipe | None = None
) -> Taught:
    """What a role's training is made of; `recipe` if not the role's own."""
    request, control = shop.request(role), shop.parts.controls.get(role)
    pixels = expected_pixels(request, shop.seen())
    return Taught(
        role=role,
        request=request,
        pixels=pixels,
        recipe=recipe or _settled(shop, role, teacher),
        teacher=teacher.created if teacher else None,
        answers=_answers(shop, teacher) if teacher and not teacher.unmeasured else None,
        decay=shop.parts.teacher.decay if isinstance(shop.parts.teacher, OwnAverage) else None,
        license=shop.license(role, taught=teacher is not None),
        shuffled=control is not None and control.shuffled,
        stored=(
            _stored(shop, teacher, pixels) if teacher and shop.parts.answers == "stored" else None
        ),
    )


def identity(shop: Workshop, own: Taught, teacher: Member | None) -> dict[str, Any]:
    """All that decides the trained weights, beside the hashes of data, teacher and
    start.
    """
    recipe = own.recipe
    return {
        "model": {
            "name": own.request.name,
            "kwargs": own.request.kwargs,
            "pixels": vars(own.pixels),
            "classes": list(shop.classes),
        },
        "loss": recipe.loss,
        "optimizer": recipe.optimizer,
        "scheduler": recipe.scheduler,
        "callbacks": recipe.callbacks,
        "seed": recipe.seed,
        "trainer": {**shop.parts.trainer.identity(), "max_epochs": recipe.max_epochs},
        "data": _views(shop, own.role),
        "teacher": (
            {"name": teacher.request.name, "pixels": vars(teacher.created.pixels)}
            if teacher
            else None
        ),
        **({"shuffled": True} if own.shuffled else {}),
        **({"answers": "stored"} if own.stored else {}),
    }


def _inputs(shop: Workshop, own: Taught, teacher: Member | None) -> dict[str, str]:
    """Hashes of data, start and teacher."""
    start = create(own.request, own.pixels, len(shop.classes), seed=own.recipe.seed)
    inputs = {"data": shop.data.fingerprint, "start": start.weights.sha256}
    return {**inputs, "teacher": teacher.created.weights.sha256} if teacher else inputs


def _views(shop: Workshop, role: str) -> dict[str, Any]:
    """What decides the batches beside the data."""
    data = shop.data
    if shop.parts.own.data is not None:
        return {"module": type(shop.parts.own.data).__qualname__, "batch_size": data.batch_size}
    node = shop.parts.config["data"]
    more = {
        **_changes(data),
        "views": node.get("views") if role != "teacher" else None,
        "labels": getattr(data, "labels", None),
    }
    return {
        "view": node.get("view"),
        "batch_size": node.get("batch_size"),
        **{key: value for key, value in more.items() if value is not None},
    }


def _changes(data: Any) -> dict[str, Any]:
    """What is done to images after their view, where anything is."""
    done = {key: getattr(data, key, None) for key in ("mix", "augment")}
    return {key: vars(part) for key, part in done.items() if part is not None}


def _settled(shop: Workshop, role: str, teacher: Member | None) -> Recipe:
    """How a role is trained. What a control leaves open is computed once, and found
    again: from the teacher's answers, or from the clock.
    """
    control = shop.parts.controls.get(role)
    if control is None:
        recipe = shop.parts.teacher_recipe if role == "teacher" else shop.parts.recipe
        assert recipe is not None
        return recipe
    assert teacher is not None
    recipe = control.plain()
    if control.entropy_at is not None:
        entropy = mean_entropy(shop.predictions(teacher, "train").logits, control.entropy_at)
        recipe = control.smoothed(entropy, len(shop.classes))
        shop.decided.setdefault(role, {}).update(
            teacher_entropy=entropy, temperature=control.entropy_at, loss=recipe.loss
        )
    if control.as_long:
        found = _epochs(shop, role, teacher, recipe)
        recipe = replace(recipe, max_epochs=found["max_epochs"])
        shop.decided.setdefault(role, {}).update(found)
    return recipe


def _epochs(shop: Workshop, role: str, teacher: Member, recipe: Recipe) -> dict[str, Any]:
    """How many epochs of `recipe` last as long as the student's training. Seeds of one
    recipe share the answer.
    """
    listening = teacher if recipe.terms().needs_teacher else None
    student = taught(shop, "student", teacher, shop.parts.recipe)
    both = {"student": (student, teacher), role: (taught(shop, role, listening, recipe), listening)}
    config = {
        name: {key: value for key, value in identity(shop, *each).items() if key != "seed"}
        for name, each in both.items()
    }
    inputs = {"data": shop.data.fingerprint, "teacher": teacher.created.weights.sha256}
    trainings = {name: own for name, (own, _) in both.items()}

    def measure(folder: Path) -> None:
        shop.console.line(f"  {role}: measuring how long an epoch takes ...")
        as_long(shop.parts.recipe.max_epochs, trainings, shop.data, shop.parts.trainer, folder)

    stage = shop.make(f"epochs-{role}", config, inputs, measure)
    return dict(json.loads((stage.path / EPOCHS).read_text(encoding="utf-8")))


def _answers(shop: Workshop, teacher: Member) -> Answers | None:
    """The teacher's answers on validation; none where only a part of it was looked at."""
    if shop.limit is not None:
        return None
    found = shop.predictions(teacher, "validation")
    order = found.index.argsort()
    return Answers(torch.from_numpy(found.index[order]), torch.from_numpy(found.logits[order]))


def _stored(shop: Workshop, teacher: Member, sees: Pixels) -> StoredAnswers:
    """The teacher's answers to every view that a student who expects these pixels is
    shown, computed once.
    """
    data, trainer = shop.data, shop.parts.trainer
    config = {
        "model": teacher.request.name,
        "pixels": vars(teacher.created.pixels),
        "sees": vars(sees),
        "view": shop.parts.config["data"]["view"],
        "views": data.views,
        **_changes(data),
        **({"labels": data.labels} if data.mix else {}),
    }
    inputs = {"data": data.fingerprint, "weights": teacher.created.weights.sha256}
    place: dict[str, Any] = {
        "device": trainer.device,
        "channels_last": trainer.channels_last,
        "say": shop.console.line,
    }
    stage = shop.make(
        STORED, config, inputs, lambda folder: store(teacher.created, data, sees, folder, **place)
    )
    return StoredAnswers.load(stage.path)


def _fit(shop: Workshop, own: Taught, teacher: Member | None, folder: Path, stage: str) -> None:
    """Train in `folder`, in this process or on ranks; whoever follows hears of what an
    earlier attempt did first.
    """
    resumed(folder, shop.console.say)
    before = points(folder)
    listen = shop.tracker.start(stage, told(teacher) if teacher else None, before)
    if shop.watch is not None and own.role == "student":
        for row, step in before:
            shop.watch(row, step)
        listen = _both(listen, shop.watch)
    settings = shop.parts.trainer
    if settings.world_size > 1:
        fit_on_ranks(_job(shop, own, teacher, folder), folder, settings.world_size, listen=listen)
    else:
        fit(own, shop.data, settings, folder, console=shop.console, listen=listen)


def _job(shop: Workshop, own: Taught, teacher: Member | None, folder: Path) -> dict[str, Any]:
    """The same training as plain data, for other processes."""
    config = shop.parts.config
    return {
        "config": {**config, "trainer": {**config["trainer"], **shop.parts.trainer.place()}},
        "stages": str(shop.stages.root),
        "role": own.role,
        "recipe": vars(own.recipe),
        "folder": str(folder),
        "data": str(shop.data_folder) if shop.data_folder else None,
        "listens": teacher is not None,
        "teacher": str(teacher.folder) if teacher and teacher.folder else None,
        "unmeasured": teacher.unmeasured if teacher else "",
    }


def _left(shop: Workshop, own: Taught, folder: Path) -> Member:
    """What a training left in `folder`."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    again = trained(own.request, folder)
    return Member(
        own.role,
        again,
        create(again, own.pixels, len(shop.classes), seed=own.recipe.seed),
        record,
        folder,
    )


def _both(first: Callable[..., None] | None, second: Callable[..., None]) -> Callable[..., None]:
    def listen(row: dict[str, float], step: int) -> None:
        if first is not None:
            first(row, step)
        second(row, step)

    return listen
