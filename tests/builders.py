"""Builders shared by the tests: small teachers, data, workspaces and trainings, and
readers of a run's folder.
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
from kd_app.callbacks.curve_log import read_curves
from kd_app.config import InputSpec
from kd_app.config.compose import choose_all_labels, compose_config
from kd_app.deployment.predictions import measure_throughput
from kd_app.digest import hash_file, seal
from kd_app.models.create import measure_width
from kd_app.models.save import save_model
from kd_app.reporting.console import Console
from kd_app.run.model import RunModel
from kd_app.run.role_jobs import build_student_job
from kd_app.run.train import train
from kd_app.run.workspace import Workspace
from kd_app.specs.spec import build_spec
from kd_app.stages import Stages
from kd_app.training.module import Distillation

DIGITS = tuple("0123456789")
GRAY = InputSpec(1, 8, 8, (0.3,), (0.4,))

quick_speed = partial(measure_throughput, batch=8, seconds=0.02)
"""Replaces the throughput measurement, which takes seconds, in tests that do not check
the speed.
"""


def quick_latency(workspace: Workspace, models: Mapping[str, RunModel]) -> dict[str, float]:
    """Replaces the latency measurement of a compression, which exports every student:
    2 ms for float, 1 ms for int8.
    """
    return {name: 1.0 if model.program else 2.0 for name, model in models.items()}


def teacher_folder(
    folder: Path,
    name: str = "resnet8",
    *,
    pixels: InputSpec = GRAY,
    classes: tuple[str, ...] = DIGITS,
    license: str = "none",
    **kwargs: Any,
) -> Path:
    """Save a teacher with random weights for these classes in timm's local-dir layout;
    a run uses it without training.
    """
    with torch.random.fork_rng():
        torch.manual_seed(77)
        model = timm.create_model(
            name, num_classes=len(classes), in_chans=pixels.channels, **kwargs
        )
    save_model(model, folder, pixels=pixels, classes=classes, license=license)
    return folder


def image_folder(
    folder: Path, *, images: int, classes: int = 2, side: int = 16, seed: int = 0
) -> Path:
    """Write `images` PNG files of color noise per class; each class is brighter."""
    random = np.random.default_rng(seed)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(images):
            pixels = random.integers(
                0, 128 + 120 * label // max(classes - 1, 1), (side, side, 3), dtype=np.uint8
            )
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{number:03d}.png")
    return folder


class RecordingListener:
    """A listener that records its calls."""

    def __init__(self) -> None:
        self.before: list[dict[str, float]] = []
        self.logged: list[dict[str, float]] = []
        self.finished: list[str] = []

    def start(
        self, stage: str, teacher: Any, points: Sequence[Any]
    ) -> Callable[[dict[str, float], int], None]:
        self.before += [{"step": step, **row} for row, step in points]
        return lambda row, step: self.logged.append({"step": step, **row})

    def finish(self, stage: str, *more: Any) -> None:
        self.finished.append(stage)


def build_workspace(folder: Path, *overrides: str) -> Workspace:
    """The workspace of ``kd-distill <overrides>`` on the CPU, with its data prepared.

    Models are measured on one batch of a split.
    """
    fixed = (
        f"stages={folder / 'stages'}",
        "logger=[]",
        "trainer=cpu",
        "trainer.precision=32-true",
        "trainer.limit_test_batches=1",
    )
    config = compose_config("distill", choose_all_labels([*fixed, *overrides]))
    stages = Stages(Path(config["stages"]))
    workspace = Workspace(build_spec(config), stages, Console(silent=True), tracker=None)
    workspace.prepare_data()
    return workspace


@dataclass
class StudentTraining:
    """A student that was trained without the rest of a run.

    folder: of the training stage. logged_points: the curve points that a listener
    received.
    """

    folder: Path
    curves: list[dict[str, float]]
    logged_points: list[dict[str, float]]
    member: RunModel
    data: Any


def train_student(
    teacher: Path | Literal["ema"] | None, folder: Path, *overrides: str
) -> StudentTraining:
    """Train the student of ``kd-distill <overrides>`` with the teacher in a folder,
    with the student's moving average, or without a teacher.
    """
    if teacher is None:
        source = ["teacher=none", "loss=[cross_entropy]"]
    elif isinstance(teacher, str):
        source = [f"teacher={teacher}"]
    else:
        source = [f"teacher.checkpoint={teacher}"]
    fixed = [
        *source,
        f"stages={folder / 'stages'}",
        "controls=[]",
        "logger=[]",
        "trainer=cpu",
        "trainer.precision=32-true",
    ]
    config = compose_config("distill", choose_all_labels([*fixed, *overrides]))
    spec, listener = build_spec(config), RecordingListener()
    stages = Stages(Path(config["stages"]))
    workspace = Workspace(spec, stages, Console(silent=True), tracker=None)
    workspace.prepare_data()
    loaded = workspace.load_model(spec.teacher, seed=0) if spec.teacher else None
    if loaded is not None:
        workspace.task = workspace.task.bind_teacher(measure_width(loaded.loaded))
    student = train(workspace, build_student_job(workspace, loaded), listener=listener)
    assert student.folder is not None
    return StudentTraining(
        student.folder,
        list(read_curves(student.folder / "curves.jsonl")),
        listener.logged,
        student,
        workspace.data,
    )


def compare_resumed(
    teacher: Path | Literal["ema"], folder: Path, *overrides: str
) -> StudentTraining:
    """Return an uninterrupted training, and assert that one that was interrupted before
    its fourth batch and resumed has the same weights and curves, bit by bit.
    """
    whole = train_student(teacher, folder / "whole", *overrides)
    plain, steps = Distillation.training_step, iter(range(100))

    def interrupt(module: Distillation, batch: Any, batch_idx: int) -> torch.Tensor:
        if next(steps) == 3:
            raise KeyboardInterrupt
        return plain(module, batch, batch_idx)

    with patch.object(Distillation, "training_step", interrupt):
        with pytest.raises(KeyboardInterrupt):
            train_student(teacher, folder / "cut", *overrides)
        resumed = train_student(teacher, folder / "cut", *overrides)
    weights = resumed.member.loaded.model.state_dict()
    assert all(
        torch.equal(tensor, weights[name])
        for name, tensor in whole.member.loaded.model.state_dict().items()
    )
    assert resumed.curves == whole.curves
    return whole


def student_sha256(out: Path) -> str:
    """sha256 of the exported student."""
    return hash_file(out / "student" / "model.safetensors")


def results(out: Path) -> dict[str, Any]:
    """Content of ``results.json``."""
    content: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return content


def stage(out: Path, name: str) -> Path:
    """Folder of a run's stage."""
    return next(Path(each["path"]) for each in results(out)["stages"] if each["name"] == name)


def accept_changes(run: Path, **changes: Any) -> None:
    """Change keys of results.json, and record its hash and those of all listed files
    that are there anew, as if the run had written them so.
    """
    path = run / "results.json"
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    names = [file["name"] for file in content.get("files", ())]
    content["files"] = [
        {"name": name, "sha256": hash_file(run / name)} for name in names if (run / name).is_file()
    ]
    path.write_text(json.dumps(seal(content)), encoding="utf-8")
