"""Checks that the teacher's head is trained, that the teacher is deterministic, and
that its accuracy is above chance and as high as published.
"""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kd_app.checks.context import CheckContext
from kd_app.checks.finding import Finding, note, refuse, warn
from kd_app.config import RequestError
from kd_app.config.records import MAX_BYTES, parse_values, parse_with
from kd_app.config.regular_file import read_regular
from kd_app.data.normalize import normalize
from kd_app.models.spec import LoadedModel, ModelSpec
from kd_app.models.teacher import FrozenTeacher
from kd_app.models.weights import hash_state
from kd_app.reporting.results import read
from kd_app.run.model import RunModel
from kd_app.run_files import RESULTS

_DETERMINISM_IMAGES = 32
_TOLERANCE = 0.01
"""Share of the standard deviation of the logits. Another order of additions changes the
logits by less, any dropout by more.
"""


def check_random_head(context: CheckContext) -> Iterator[Finding]:
    """Refuse a teacher with a random head that the run would not train."""
    if context.random_head:
        yield refuse("random-head", context.random_head)
    elif context.must_train_teacher:
        assert context.workspace.spec.teacher is not None
        yield note(
            "teacher-not-there",
            f"The run trains the teacher {context.workspace.spec.teacher.name} first, so the"
            " teacher can't be checked yet. Re-run kd-check once the teacher is trained.",
        )


def check_determinism(context: CheckContext) -> Iterator[Finding]:
    """Refuse a teacher whose outputs for the same image vary: dropout or drop-path that
    stay active, or BatchNorm that updates or uses batch statistics.
    """
    teacher = context.any_teacher
    if teacher is None:
        return
    frozen = FrozenTeacher(
        deepcopy(teacher.model),
        reads=frozenset({"logits"}),
        pixels=teacher.pixels,
        sees=teacher.pixels,
    )
    frozen = frozen.to(context.workspace.spec.trainer.device).train()
    image = _load_images(context, teacher)
    before = hash_state(frozen.model.state_dict())
    first, second = _compute_logits(frozen, image), _compute_logits(frozen, image)
    halves = torch.cat([_compute_logits(frozen, half) for half in image.tensor_split(2)])
    after = hash_state(frozen.model.state_dict())
    problems = []
    if _is_different(first, second):
        problems.append(
            "its logits for the same batch differ between two passes (dropout or drop-path that"
            " stays active)"
        )
    if before != after:
        problems.append("its state changes during inference (BatchNorm's running statistics)")
    if _is_different(first, halves):
        problems.append(
            "its logits for an image depend on the rest of the batch (BatchNorm that uses batch"
            " statistics)"
        )
    if problems:
        spec = context.workspace.spec.teacher
        yield refuse(
            "teacher-not-deterministic",
            f"The teacher {spec.name if spec else ''} is in eval mode, but {'; '.join(problems)}."
            " Make its modules respect eval().",
        )


def _load_images(context: CheckContext, teacher: LoadedModel) -> Tensor:
    batches = context.workspace.data.sample("train", teacher.pixels, _DETERMINISM_IMAGES)
    image = torch.cat([batch.image for batch in batches])[:_DETERMINISM_IMAGES]
    image = image.to(context.workspace.spec.trainer.device)
    if image.dtype != torch.uint8:
        return image
    return normalize(image, teacher.pixels, torch.contiguous_format)


def _compute_logits(teacher: FrozenTeacher, image: Tensor) -> Tensor:
    logits = teacher(image).logits
    assert logits is not None
    return logits.float()  # type: ignore[no-any-return]


def _is_different(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).abs().max() > _TOLERANCE * first.std() + 1e-6)


def check_chance_level(context: CheckContext) -> Iterator[Finding]:
    """Refuse a ready teacher at chance: its accuracy is not significantly above that of
    random predictions with the same class frequencies, and significantly below half way
    from there to 1. Warn of a teacher that is trained here, of one that can't be told
    from chance on these images, and of one that is not significantly better than the
    most frequent class.
    """
    from scipy.stats import binomtest

    if context.teacher is None:
        return
    hits, num_classes = context.judged.hits, len(context.workspace.classes)
    counts = np.bincount(context.judged.target, minlength=num_classes)
    predicted = np.bincount(context.judged.logits.argmax(axis=1), minlength=num_classes)
    chance = float(counts @ predicted) / len(hits) ** 2
    right, alpha = int(hits.sum()), 1 - context.verdict_rule.confidence
    accuracy = f"The teacher {context.teacher.spec.name} is right on {hits.mean():.1%} of"
    accuracy += f" {len(hits):,} images"
    if binomtest(right, len(hits), chance, alternative="greater").pvalue > alpha:
        high = binomtest(right, len(hits)).proportion_ci(1 - 2 * alpha).high
        is_shown = high < (1 + chance) / 2
        build = refuse if is_shown and context.teacher_must_fit else warn
        consequence = (
            f"a student can't learn from it. {_explain_chance_level(context.teacher)}"
            if is_shown
            else "too few images to tell whether it knows anything."
        )
        yield build("teacher-at-chance", f"{accuracy}, and chance is {chance:.1%}: {consequence}")
    elif (
        binomtest(right, len(hits), counts.max() / len(hits), alternative="greater").pvalue > alpha
    ):
        frequent = context.workspace.classes[int(counts.argmax())]
        yield warn(
            "teacher-weak",
            f"{accuracy}, and always predicting {frequent!r}, the most frequent class, is right on"
            f" {counts.max() / len(hits):.1%}. A student that is as good as this teacher is not"
            " worth much: train the teacher longer (teacher.max_epochs), or name another one.",
        )


def _explain_chance_level(teacher: RunModel) -> str:
    """What may be wrong with a teacher at chance."""
    if teacher.folder is None:
        return "Its head may be random, its class order different, or its input wrong."
    return (
        "Its training was too short, or its learning rate does not suit it: raise"
        " teacher.max_epochs, or change teacher.optimizer.lr."
    )


def check_published_accuracy(context: CheckContext) -> Iterator[Finding]:
    """Warn of a teacher that is less accurate than published with its weights."""
    from scipy.stats import binomtest

    if context.teacher is None:
        return
    published, source = read_published_accuracy(context.teacher.spec)
    if published is None:
        return
    hits = context.hits
    test = binomtest(int(hits.sum()), len(hits), published, alternative="less")
    if test.pvalue < context.limits.significance:
        yield warn(
            "teacher-below-published",
            f"The teacher is right on {hits.mean():.1%} of {len(hits):,} images, but {source}"
            f" reports {published:.1%}. Check that its input, classes and kind of images are"
            " those it was trained on.",
        )


def read_published_accuracy(spec: ModelSpec) -> tuple[float | None, str]:
    """The accuracy (0..1) that is published with a teacher's weights, and its file: the
    results of its run, or the model-index of its model card.
    """
    path = spec.origin.path
    for folder in () if path is None else (path, path.parent):
        if (folder / RESULTS).is_file():
            try:
                results = read(folder / RESULTS)
            except RequestError:
                continue
            split = results.test or results.validation
            return (split.student.top1 if split else None), f"{folder.name}/{RESULTS}"
        if (folder / "README.md").is_file():
            return _read_card_accuracy(folder / "README.md"), f"{folder.name}/README.md"
    return None, ""


def _read_card_accuracy(path: Path) -> float | None:
    """The first accuracy in a model card's metadata, in Hugging Face's format; values
    above 1 are percent.
    """

    def parse() -> list[float]:
        head = read_regular(path, MAX_BYTES).decode("utf-8", errors="replace").split("---")
        metadata = parse_values(head[1], is_yaml=True) if len(head) > 2 else {}
        return [
            float(metric["value"])
            for model in metadata.get("model-index", [])
            for result in model["results"]
            for metric in result["metrics"]
            if str(metric["type"]).lower() in ("accuracy", "top1", "top-1", "top_1_accuracy")
        ]

    try:
        values = parse_with(path, parse, expected="")
    except (OSError, RequestError):
        return None
    if not values:
        return None
    return values[0] / 100 if values[0] > 1 else values[0]
