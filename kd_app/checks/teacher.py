"""Is the teacher one: with a head that was trained, the same answers to the same
images, and answers that beat chance?
"""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
import yaml

from kd_app.checks.context import CheckContext
from kd_app.checks.finding import Finding, note, refuse, warn
from kd_app.config import RequestError
from kd_app.data.normalize import normalize
from kd_app.models.spec import ModelSpec
from kd_app.models.teacher import FrozenTeacher
from kd_app.models.weights import state_sha256
from kd_app.reporting.results import read
from kd_app.run_files import RESULTS

_TWICE = 32
_TOLERANCE = 0.01
"""Of the answers' spread: what another order of additions may change, and no dropout
stays below.
"""


def check_random_head(subject: CheckContext) -> Iterator[Finding]:
    """A teacher whose classifier nobody has trained, or would train."""
    if subject.random_head:
        yield refuse("random-head", subject.random_head)
    elif (
        subject.teacher is None and subject.shop.spec.teacher is not None and not subject.unmeasured
    ):
        yield note(
            "teacher-not-there",
            f"The teacher {subject.shop.spec.teacher.name} is trained by the run itself first, so"
            " what it knows can't be judged yet. Say kd-check again when it is there.",
        )


def check_determinism(subject: CheckContext) -> Iterator[Finding]:
    """A teacher that answers the same images differently: dropout or drop-path that
    stay on, or BatchNorm that moves or goes by the batch.
    """
    created = subject.any_teacher
    if created is None:
        return
    batches = list(subject.shop.data.sample("train", created.pixels, _TWICE))
    device = subject.shop.spec.trainer.device
    image = torch.cat([batch.image for batch in batches])[:_TWICE].to(device)
    image = (
        normalize(image, created.pixels, torch.contiguous_format)
        if image.dtype == torch.uint8
        else image
    )
    frozen = (
        FrozenTeacher(
            deepcopy(created.model),
            reads=frozenset({"logits"}),
            pixels=created.pixels,
            sees=created.pixels,
        )
        .to(device)
        .train()
    )
    before = state_sha256(frozen.model.state_dict())
    answers = []
    for part in (image, image, *image.tensor_split(2)):
        logits = frozen(part).logits
        assert logits is not None
        answers.append(logits.float())
    once, again, halves = answers[0], answers[1], torch.cat(answers[2:])
    wrong = [
        text
        for text, found in (
            (
                (
                    "it answers the same batch differently the second time (dropout or drop-path"
                    " that stays on)"
                ),
                _is_different(once, again),
            ),
            (
                "its state changes while it answers (BatchNorm's running statistics)",
                state_sha256(frozen.model.state_dict()) != before,
            ),
            (
                (
                    "its answer to an image depends on the others of the batch (BatchNorm that goes"
                    " by the batch)"
                ),
                _is_different(once, halves),
            ),
        )
        if found
    ]
    if wrong:
        yield refuse(
            "teacher-not-deterministic",
            f"The teacher {subject.shop.spec.teacher.name if subject.shop.spec.teacher else ''}"
            f" is in eval mode and yet {'; '.join(wrong)}. Make its modules follow eval().",
        )


def _is_different(first: torch.Tensor, second: torch.Tensor) -> bool:
    return bool((first - second).abs().max() > _TOLERANCE * first.std() + 1e-6)


def check_chance_level(subject: CheckContext) -> Iterator[Finding]:
    """A teacher that is not shown to be better than answers in the same proportions
    that have nothing to do with the images.
    """
    from scipy.stats import binomtest

    if subject.teacher is None:
        return
    hits, targets, classes = subject.hits, subject.answers.target, len(subject.shop.classes)
    answered, there = (
        np.bincount(x, minlength=classes) / len(hits)
        for x in (subject.answers.logits.argmax(axis=1), targets)
    )
    chance = float(answered @ there)
    if (
        binomtest(int(hits.sum()), len(hits), chance, alternative="greater").pvalue
        > 1 - subject.judge.confidence
    ):
        yield refuse(
            "teacher-at-chance",
            f"The teacher {subject.teacher.spec.name} has {hits.mean():.1%} of {len(hits):,}"
            f" images right, and chance has {chance:.1%}: nothing can be learned from it. Its head"
            " may be random, its classes in another order, its input another one.",
        )


def check_published_accuracy(subject: CheckContext) -> Iterator[Finding]:
    """A teacher that is worse here than a figure that lies beside its weights says."""
    from scipy.stats import binomtest

    if subject.teacher is None:
        return
    told, where = read_published_accuracy(subject.teacher.spec)
    hits = subject.hits
    if (
        told is not None
        and binomtest(int(hits.sum()), len(hits), told, alternative="less").pvalue
        < subject.limits.significance
    ):
        yield warn(
            "teacher-below-published",
            f"The teacher has {hits.mean():.1%} of {len(hits):,} images right, and {where} says"
            f" {told:.1%}. Is it fed as it was then, are these the same classes and such images?",
        )


def read_published_accuracy(request: ModelSpec) -> tuple[float | None, str]:
    """The accuracy (0..1) that is told beside a teacher's weights, and where: in the
    results of its run, or in its model card's model-index.
    """
    path = request.origin.path
    for folder in () if path is None else (path, path.parent):
        if (folder / RESULTS).is_file():
            try:
                found = read(folder / RESULTS)
            except RequestError:
                continue
            split = found.test or found.validation
            return (split.student.top1 if split else None), f"{folder.name}/{RESULTS}"
        if (folder / "README.md").is_file():
            return _read_card_accuracy(folder / "README.md"), f"{folder.name}/README.md"
    return None, ""


def _read_card_accuracy(path: Path) -> float | None:
    """The first accuracy of a model card's metadata, as Hugging Face defines it;
    percent where it is more than 1.
    """
    head = path.read_text(encoding="utf-8", errors="replace").split("---")
    try:
        index = yaml.safe_load(head[1])["model-index"] if len(head) > 2 else []
        metrics = [
            metric for model in index for result in model["results"] for metric in result["metrics"]
        ]
        values = [
            float(metric["value"])
            for metric in metrics
            if str(metric["type"]).lower() in ("accuracy", "top1", "top-1", "top_1_accuracy")
        ]
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        return None
    return (values[0] / 100 if values[0] > 1 else values[0]) if values else None
