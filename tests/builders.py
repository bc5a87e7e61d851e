"""Small runs that are made again and again: a teacher that is there already, data that
take no time, and where a run left what.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import kd_app.models.small  # noqa: F401
from kd_app.config import InputSpec
from kd_app.config.compose import compose_config
from kd_app.deployment.predictions import measure_throughput
from kd_app.models.save import save_model
from kd_app.reporting.console import Console
from kd_app.run.role_jobs import build_student_job
from kd_app.run.spec import build_spec
from kd_app.run.train import train
from kd_app.run.workspace import RunModel, Workspace
from kd_app.stages import Stages, hash_file
from kd_app.training.curve_log import read_curves
from kd_app.training.module import Distillation

DIGITS = tuple("0123456789")
GRAY = InputSpec(1, 8, 8, (0.3,), (0.4,))

quick_speed = partial(measure_throughput, batch=8, seconds=0.02)
"""In the place of what a run measures for seconds, where nobody asks how fast a model
is.
"""


def quick_latency(shop: Workspace, members: Mapping[str, RunModel]) -> dict[str, float]:
    """In the place of a compression's latencies, for which every student is lowered to
    a program: 2 ms, and int8 half of that.
    """
    return {name: 1.0 if member.program else 2.0 for name, member in members.items()}


def teacher_folder(
    folder: Path,
    name: str = "resnet8",
    *,
    pixels: InputSpec = GRAY,
    classes: tuple[str, ...] = DIGITS,
    license: str = "none",
    **kwargs: Any,
) -> Path:
    """A teacher for these classes with weights that nobody trained, in timm's local-dir
    layout; used as it is.
    """
    with torch.random.fork_rng():
        torch.manual_seed(77)
        model = timm.create_model(
            name, num_classes=len(classes), in_chans=pixels.channels, **kwargs
        )
    save_model(model, folder, pixels=pixels, classes=classes, license=license)
    return folder


def image_folder(folder: Path, *, images: int, classes: int = 2, side: int = 16) -> Path:
    """`images` PNGs a class of color noise, brighter from class to class."""
    random = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(images):
            pixels = random.integers(
                0, 128 + 120 * label // max(classes - 1, 1), (side, side, 3), dtype=np.uint8
            )
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{number:03d}.png")
    return folder


class Listening:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.known: list[dict[str, float]] = []
        self.heard: list[dict[str, float]] = []
        self.finished: list[str] = []

    def start(
        self, stage: str, teacher: Any, points: Sequence[Any]
    ) -> Callable[[dict[str, float], int], None]:
        self.known += [{"step": step, **row} for row, step in points]
        return lambda row, step: self.heard.append({"step": step, **row})

    def finish(self, stage: str, *more: Any) -> None:
        self.finished.append(stage)


def build_workspace(folder: Path, *overrides: str) -> Workspace:
    """The workspace of ``kd-distill <overrides>`` on the CPU, its data prepared; one batch
    of a split is looked at when a model is measured.
    """
    fixed = (
        f"stages={folder / 'stages'}",
        "logger=[]",
        "trainer=cpu",
        "trainer.precision=32-true",
        "trainer.limit_test_batches=1",
    )
    config = compose_config("distill", [*fixed, *overrides])
    stages = Stages(Path(config["stages"]))
    workspace = Workspace(build_spec(config), stages, Console(silent=True), tracker=None)
    workspace.prepare_data()
    return workspace


@dataclass
class Trained:
    """A student that was trained without what comes before and after it: the stage's
    folder, its curves, what a tracker heard, the model, and the data.
    """

    folder: Path
    curves: list[dict[str, float]]
    heard: list[dict[str, float]]
    member: RunModel
    data: Any


def trained(teacher: Path | Literal["ema"] | None, folder: Path, *overrides: str) -> Trained:
    """Train the student of ``kd-distill <overrides>`` with the teacher in a folder, the
    student's average, or none.
    """
    named = f"teacher={teacher}" if isinstance(teacher, str) else f"teacher.checkpoint={teacher}"
    taught = ["teacher=none", "loss=[cross_entropy]"] if teacher is None else [named]
    fixed = [
        *taught,
        f"stages={folder / 'stages'}",
        "controls=[]",
        "logger=[]",
        "trainer=cpu",
        "trainer.precision=32-true",
    ]
    config = compose_config("distill", [*fixed, *overrides])
    made, listening = build_spec(config), Listening()
    shop = Workspace(made, Stages(Path(config["stages"])), Console(silent=True), tracker=None)
    shop.prepare_data()
    known = shop.load_model(made.teacher, seed=0) if made.teacher else None
    student = train(shop, build_student_job(shop, known), listener=listening)
    assert student.folder is not None
    return Trained(
        student.folder,
        list(read_curves(student.folder / "curves.jsonl")),
        listening.heard,
        student,
        shop.data,
    )


def gone_on(teacher: Path | Literal["ema"], folder: Path, *overrides: str) -> Trained:
    """A training, after one that was cut off before its fourth batch and said again has
    ended with its weights and curves, bit by bit.
    """
    whole = trained(teacher, folder / "whole", *overrides)
    plain, steps = Distillation.training_step, iter(range(100))

    def cut(module: Distillation, batch: Any, batch_idx: int) -> torch.Tensor:
        if next(steps) == 3:
            raise KeyboardInterrupt
        return plain(module, batch, batch_idx)

    with patch.object(Distillation, "training_step", cut):
        with pytest.raises(KeyboardInterrupt):
            trained(teacher, folder / "cut", *overrides)
        again = trained(teacher, folder / "cut", *overrides)
    weights = again.member.loaded.model.state_dict()
    assert all(
        torch.equal(tensor, weights[name])
        for name, tensor in whole.member.loaded.model.state_dict().items()
    )
    assert again.curves == whole.curves
    return whole


def student_sha256(out: Path) -> str:
    """sha256 of the student that ships."""
    return hash_file(out / "student" / "model.safetensors")


def results(out: Path) -> dict[str, Any]:
    """Content of ``results.json``."""
    found: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return found


def stage(out: Path, name: str) -> Path:
    """Folder of a run's stage."""
    return next(Path(each["path"]) for each in results(out)["stages"] if each["name"] == name)
