"""Runs before they start, sound ones and ones with a planted fault, and teachers that
need no training.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from kd_app.checks.context import CheckContext, Limits
from kd_app.checks.finding import Finding
from kd_app.config import InputSpec
from kd_app.config.compose import compose_config
from kd_app.data.batch import Batch
from kd_app.jobs.check import CheckReport, inspect_setup
from kd_app.losses.base import Level, LossTerm
from kd_app.metrics.verdict import VerdictRule
from kd_app.models.outputs import Outputs
from kd_app.reporting.console import Console
from kd_app.run.workspace import Workspace
from kd_app.specs.spec import ExternalParts, build_spec
from kd_app.stages import Stages

HERE = "tests.checks.planted"
QUIET = Console(silent=True)
SMALL = (
    "data=digits",
    "trainer=cpu",
    "trainer.precision=32-true",
    "logger=[]",
    "controls=[]",
    "student.name=resnet8",
)


def compose_check_config(
    folder: Path, *overrides: str, teacher: nn.Module | None = None
) -> dict[str, Any]:
    license = () if teacher is None else ("teacher.license=mit",)
    return compose_config("check", [*SMALL, f"stages={folder / '.stages'}", *license, *overrides])


def build_context(folder: Path, *overrides: str, teacher: nn.Module | None = None) -> CheckContext:
    """The context of ``kd-check <overrides>`` with prepared data; the teacher is
    external, or set by the overrides.
    """
    config = compose_check_config(folder, "check.seconds=10", *overrides, teacher=teacher)
    limits, rule = Limits(**config.pop("check")), VerdictRule(**config["verdict"])
    spec = build_spec(config, ExternalParts(teacher=teacher))
    stages = Stages(Path(config["stages"]), say=QUIET.print)
    workspace = Workspace(spec, stages, QUIET, tracker=None)
    workspace.prepare_data()
    return CheckContext(workspace, limits, rule, folder / "scratch")


def report(folder: Path, *overrides: str, teacher: nn.Module | None = None) -> CheckReport:
    """All findings of ``kd-check <overrides>``."""
    return inspect_setup(
        compose_check_config(folder, "check.seconds=0.1", *overrides, teacher=teacher),
        own=ExternalParts(teacher=teacher),
        console=QUIET,
    )


def list_names(findings: Iterable[Finding]) -> list[str]:
    return [finding.name for finding in findings]


class Fitted(nn.Module):
    """A teacher fitted by least squares from pixels to classes."""

    def __init__(self, image: Tensor, target: Tensor, classes: int) -> None:
        super().__init__()
        rows, desired = image.flatten(1).double(), F.one_hot(target, classes).double()
        center = rows.mean(dim=0)
        rows = rows - center
        ridge = 0.001 * rows.square().sum() / rows.shape[1] * torch.eye(rows.shape[1])
        weight = torch.linalg.solve(rows.T @ rows + ridge, rows.T @ desired)
        self.linear = nn.Linear(rows.shape[1], classes)
        self.linear.weight.data, self.linear.bias.data = (
            weight.T.float().contiguous(),
            (desired.mean(dim=0) - center @ weight).float(),
        )

    def forward(self, image: Tensor) -> Tensor:
        return 10 * self.linear(image.flatten(1))  # type: ignore[no-any-return]


def fit_teacher(context: CheckContext, input_spec: InputSpec | None = None) -> Fitted:
    """A teacher fitted to the run's images with `input_spec`; by default with the input
    of an external teacher.
    """
    data = context.workspace.data
    mean, std = data.compute_pixel_statistics()
    spec = input_spec or InputSpec(data.channels, data.size, data.size, mean, std)
    batches = list(data.sample("train", spec, 2000))
    mean_image = torch.tensor(spec.mean).view(1, -1, 1, 1)
    image = torch.cat([batch.image for batch in batches]) / 255 - mean_image
    image = image / torch.tensor(spec.std).view(1, -1, 1, 1)
    return Fitted(image, torch.cat([batch.target for batch in batches]), len(data.classes))


class Changed(nn.Module):
    """A teacher with a change to its input or its logits."""

    def __init__(self, inner: nn.Module, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.inner(self.before(image) if self.before else image)
        return self.after(logits) if self.after else logits


class Stubborn(nn.BatchNorm2d):
    """A BatchNorm that ignores eval mode."""

    def train(self, mode: bool = True) -> "Stubborn":
        self.training = True
        return self


COLORS = ((90, 60, 50), (50, 60, 90), (190, 150, 140), (120, 170, 160))


def write_colored_photos(
    folder: Path, *, images: int = 60, side: int = 16, ready: bool = False
) -> Path:
    """Photos of four classes that differ in color and brightness alone; with `ready`,
    in split folders.
    """
    random = np.random.default_rng(0)
    for label, color in enumerate(COLORS):
        for number in range(images):
            split = ("test", "val", "train", "train")[number % 4] if ready else ""
            pixels = (
                np.array(color) + random.normal(0, 30, (side, side, 3)) + random.normal(0, 8, 3)
            )
            save(pixels, folder / split / f"class{label}" / f"{number:03d}.png")
    return folder


def write_centered_photos(folder: Path, *, images: int = 60) -> Path:
    """Photos of four classes that differ in a pattern in their middle half."""
    random = np.random.default_rng(0)
    for label in range(4):
        pattern = random.integers(0, 2, (8, 8, 1)).repeat(2, axis=0).repeat(2, axis=1) * 120.0
        for number in range(images):
            pixels = random.integers(0, 2, (16, 16, 1)).repeat(2, axis=0).repeat(2, axis=1) * 120.0
            pixels[8:24, 8:24] = pattern
            save(
                60 + pixels + random.normal(0, 20, (32, 32, 3)),
                folder / f"class{label}" / f"{number:03d}.png",
            )
    return folder


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)


class Planted(LossTerm):
    """A loss term with a fault: zero, without gradient, infinite, or infinite if the
    student computes in bfloat16.
    """

    level: ClassVar[Level] = "output"

    def __init__(self, *, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert student.logits is not None
        value = student.logits.square().mean()
        if self.fault == "zero":
            return 0 * value
        if self.fault == "no-gradient":
            return value.detach()
        if self.fault == "infinite":
            return value / 0
        return value / (student.logits - student.logits.bfloat16()).abs().sum()
