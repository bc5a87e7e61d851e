"""One trial of the search for default recipes: a model that is trained with given
settings on a small copy of an image set, and what it is worth.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.careful_loop import Images, LoopSettings, classify, train_carefully
from benchmarks.image_sets import (
    Size,
    copy_cifar,
    copy_fashion,
    copy_flowers,
    copy_imbalanced,
    write_lite,
)
from kd_app.config.compose import compose_config
from kd_app.metrics.record import Predictions
from kd_app.models import weights
from kd_app.models.create import create
from kd_app.reporting.console import Console
from kd_app.run.model import RunModel
from kd_app.run.role_jobs import build_control_job, build_student_job, build_teacher_job
from kd_app.run.train import train
from kd_app.run.workspace import Workspace
from kd_app.specs.spec import build_spec
from kd_app.stages import Stages

FILE: Final = Path(__file__).parents[1] / "docs" / "recipes.jsonl"
DIGITS, FASHION, CIFAR, FLOWERS = "digits", "fashion_mnist", "cifar10", "flowers"
IMBALANCED: Final = "imbalanced"
VALIDATED: Final = ("search", "longer", "transformer", "tuning")
"""Studies that choose, and so are measured on validation images."""
SETS: Final = (DIGITS, FASHION, CIFAR, FLOWERS)
LABELS, DISTILLED = "labels", "distilled"
BY_HAND: Final = {LABELS: "labels by hand", DISTILLED: "distilled by hand"}
LABEL_FRACTION: Final = "data.label_fraction"
TEACHER_LABELS: Final = "teacher_labels"
"""The key of a candidate whose teacher knows the labels that the student lacks."""
_SMALL_VIT: Final = {"patch_size": 2, "embed_dim": 48, "depth": 2, "num_heads": 4}
_TEST_SHARE: Final = 0.4
"""Of the photographs, which have no split."""


class Scale(NamedTuple):
    """How much is trained. images, tests: of Fashion-MNIST and CIFAR-10, for training
    and validation and for the test, at most. photos: of the flowers. sides: pixels of
    the models' input by set. epochs: by set, where they are not the default.
    has_own_teachers: in a comparison of the defaults with a loop by hand, each seed has
    its own split and its own teacher.
    """

    images: int
    tests: int
    photos: int
    sides: Mapping[str, int]
    epochs: Mapping[str, int]
    has_own_teachers: bool


TAUGHT: Final = "taught"
SCALES: Final = {
    "quick": Scale(
        3_000,
        1_500,
        1_000,
        {FASHION: 14, CIFAR: 16, IMBALANCED: 16, FLOWERS: 64},
        {DIGITS: 20, FLOWERS: 4},
        has_own_teachers=False,
    ),
    "small": Scale(5_000, 2_500, 1_500, {FLOWERS: 64}, {FLOWERS: 5}, has_own_teachers=True),
    "preset": Scale(5_000, 2_500, 1_500, {FLOWERS: 64}, {}, has_own_teachers=True),
    TAUGHT: Scale(2_000, 10_000, 1_500, {CIFAR: 64, FLOWERS: 64}, {}, has_own_teachers=True),
    "full": Scale(10_000, 5_000, 4_317, {FLOWERS: 128}, {}, has_own_teachers=True),
}


class Trial(NamedTuple):
    """A training, identified by everything that decides its result.

    study: what it is compared for. data: the set. scale: see `SCALES`. pair: teacher
    and student. arm: trained on labels or distilled, by kd_app or by hand. candidate:
    settings that differ from the defaults, as overrides separated by spaces; for a loop
    by hand its own settings.
    """

    study: str
    data: str
    scale: str
    pair: str
    arm: str
    candidate: str
    seed: int


class Measured(NamedTuple):
    """The result of a trial, on validation in a search, else on test. num_images: the
    number of these images. steps: of the optimizer.
    """

    top1: float
    balanced: float
    nll: float | None
    num_images: int
    steps: int
    seconds: float


@dataclass(frozen=True)
class Place:
    """Where the sets are: the originals, and a folder for copies and stages."""

    folder: Path
    cifar10: Path
    flowers: Path

    def list_overrides(self, data: str, scale: Scale) -> list[str]:
        """The overrides of ``kd-distill`` that name a set, and those of its scale."""
        overrides = self._name_data(data, scale)
        if data in scale.sides:
            roles = ("teacher", "student")
            overrides += [f"{role}.image_size={scale.sides[data]}" for role in roles]
        if data in scale.epochs:
            roles = ("teacher", "trainer")
            overrides += [f"{role}.max_epochs={scale.epochs[data]}" for role in roles]
        return overrides

    def _name_data(self, data: str, scale: Scale) -> list[str]:
        images = scale.images
        size = Size(images, scale.tests)
        if data == DIGITS:
            return ["data=digits"]
        if data == FASHION:
            return ["data=fashion_mnist", f"data.root={copy_fashion(self.folder, size)}"]
        if data == CIFAR:
            return self._name_folder(copy_cifar(self.folder, size, self.cifar10))
        if data == IMBALANCED:
            root = copy_imbalanced(
                self.folder, self.cifar10, largest=images // 4, ratio=20, test=images // 20
            )
            return self._name_folder(root)
        root = copy_flowers(self.folder, Size(scale.photos, 0), self.flowers)
        # depthwise convolutions are slow in bf16 on a CPU
        precision = "trainer.precision=32-true"
        return [*self._name_folder(root), f"data.split.test={_TEST_SHARE}", precision]

    def _name_folder(self, root: Path) -> list[str]:
        return ["data=folder", f"data.root={root}", "data.num_workers=0"]

    def name_models(self, pair: str) -> list[str]:
        """The overrides that name teacher and student: names of timm, a ``small_vit``,
        or ``lite0`` and ``lite1`` with ImageNet weights.
        """
        overrides = []
        for role, name in zip(("teacher", "student"), pair.split(" -> "), strict=True):
            if name.startswith("lite"):
                path = write_lite(self.folder, int(name[-1]))
                overrides.append(f"{role}.checkpoint={path}")
            elif name == "small_vit":
                overrides.append(f"{role}.name=vit_tiny_patch16_224")
                overrides += [f"{role}.kwargs.{key}={value}" for key, value in _SMALL_VIT.items()]
            else:
                overrides.append(f"{role}.name={name}")
        return overrides


def measure_trial(trial: Trial, place: Place) -> Measured:
    """Train and measure. The teacher is trained once for all trials that share it."""
    overrides = [
        *place.list_overrides(trial.data, SCALES[trial.scale]),
        *place.name_models(trial.pair),
        f"seed={trial.seed}",
        "controls=[labels_only]",
        "logger=[csv]",
    ]
    settings = trial.candidate.split()
    is_search = trial.study in VALIDATED
    if is_search or not SCALES[trial.scale].has_own_teachers:
        overrides.append("data.split.validation=0.25")
    else:
        overrides += [f"data.seed={trial.seed}", f"teacher.seed={trial.seed}"]
    if is_search:
        overrides += ["data.views=4", "teacher.outputs=cached"]
    is_by_hand = trial.arm in BY_HAND.values()
    own = [each for each in settings if each.startswith(("careful.", "head=", TEACHER_LABELS))]
    overrides += [each for each in settings if each not in own]
    options = dict(each.removeprefix("careful.").split("=", 1) for each in own)
    split = "validation" if is_search else "test"
    start = time.perf_counter()
    with _start_head(options.pop("head", None)) as name:
        stages = place.folder / f"stages{name}"
        workspace = _open(overrides, stages)
        if is_by_hand:
            return _measure_by_hand(workspace, trial, options, split, start)
        teaches = workspace
        if options.pop(TEACHER_LABELS, None):
            all_labels = [each for each in overrides if not each.startswith(LABEL_FRACTION)]
            teaches = _open(all_labels, stages)
        model = _train_role(workspace, trial.arm, teaches)
        predictions = workspace.load_predictions(model, split)
    spec = workspace.spec
    epochs = int(model.record["epochs"])
    steps = epochs * workspace.data.count_steps_per_epoch(spec.trainer.world_size)[0]
    return _summarize(predictions, steps, time.perf_counter() - start)


def _open(overrides: list[str], stages: Path) -> Workspace:
    spec = build_spec(compose_config("distill", overrides))
    workspace = Workspace(spec, Stages(stages), Console(silent=True), tracker=None)
    workspace.prepare_data()
    return workspace


def _train_role(workspace: Workspace, arm: str, teaches: Workspace) -> RunModel:
    """Train a model; `teaches` has the teacher."""
    teacher = _load_teacher(teaches) if arm == DISTILLED else None
    if arm == DISTILLED:
        return train(workspace, build_student_job(workspace, teacher))
    spec = workspace.spec
    unused = workspace.load_model(spec.student, seed=0)
    return train(workspace, build_control_job(workspace, "labels_only", unused))


def _load_teacher(workspace: Workspace) -> RunModel:
    teacher = workspace.load_pretrained_teacher()
    return teacher or train(workspace, build_teacher_job(workspace))


@contextmanager
def _start_head(start: str | None) -> Iterator[str]:
    """Start new heads as timm does, or with another deviation; yields a part of the
    stages' name, because stages do not depend on it.
    """
    if start is None:
        yield ""
    elif start == "timm":
        with patch.object(weights, "_initialize_head", lambda *_: None):
            yield "-timm"
    else:
        with patch.object(weights, "HEAD_DEVIATION", float(start)):
            yield f"-{start}"


def _summarize(predictions: Predictions, steps: int, seconds: float) -> Measured:
    return Measured(
        round(float(predictions.hits.mean()), 5),
        round(predictions.totals.balanced_accuracy, 5),
        round(predictions.totals.nll, 4),
        len(predictions.target),
        steps,
        round(seconds, 1),
    )


def _balance(hits: Any, target: Any) -> float:
    """The mean over the classes of the share of hits."""
    return float(np.mean([hits[target == each].mean() for each in np.unique(target)]))


def _measure_by_hand(
    workspace: Workspace, trial: Trial, options: Mapping[str, str], split: str, start: float
) -> Measured:
    spec = workspace.spec
    is_distilled = trial.arm == BY_HAND[DISTILLED]
    teacher = _load_teacher(workspace).loaded.model.eval() if is_distilled else None
    job = build_student_job(workspace, None)
    student = create(job.model, job.input, len(workspace.classes), seed=trial.seed).model
    side = job.input.height
    settings = LoopSettings(
        epochs=spec.recipe.max_epochs,
        batch_size=workspace.data.batch_size,
        lr=float(options["lr"]),
        padding=max(1, side // 8) if side > 8 else 1,
        flip=trial.data != DIGITS,
        temperature=float(options.get("temperature", 4)),
        precision=spec.trainer.precision,
        balance=options.get("balance", "none"),
    )
    if teacher is not None:
        teacher.to(memory_format=torch.channels_last)
    steps = train_carefully(
        student, teacher, _read_images(workspace, "train"), settings, trial.seed
    )
    test = _read_images(workspace, split)
    hits = (classify(student, test) == test.target).numpy()
    return Measured(
        round(float(hits.mean()), 5),
        round(_balance(hits, test.target.numpy()), 5),
        None,
        len(hits),
        steps,
        round(time.perf_counter() - start, 1),
    )


def _read_images(workspace: Workspace, split: str) -> Images:
    """All images of a split in memory, as an evaluation sees them."""
    pixels = build_student_job(workspace, None).input
    batches = list(workspace.data.build_evaluation_loader(split, pixels, batch_size=256))
    return Images(
        torch.cat([each.image for each in batches]),
        torch.cat([each.to_hard_target() for each in batches]),
        pixels.mean,
        pixels.std,
    )
