"""Runs that have not begun, sound ones and such with a fault that somebody planted; and
teachers that take no training.
"""

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
from kd_app.run.spec import ExternalParts, build_spec
from kd_app.run.workspace import Workspace
from kd_app.stages import Stages

HERE = "tests.checks.planted"
QUIET = Console(silent=True)
SMALL = (
    "trainer=cpu",
    "trainer.precision=32-true",
    "logger=[]",
    "controls=[]",
    "student.name=resnet8",
)


def config(folder: Path, *words: str, teacher: nn.Module | None = None) -> dict[str, Any]:
    licensed = () if teacher is None else ("teacher.license=mit",)
    return compose_config("check", [*SMALL, f"stages={folder / '.stages'}", *licensed, *words])


def subject(folder: Path, *words: str, teacher: nn.Module | None = None) -> CheckContext:
    """A run of these words, its data there; the teacher is handed over, or named by the
    words.
    """
    asked = config(folder, "check.seconds=10", *words, teacher=teacher)
    limits, judge = Limits(**asked.pop("check")), VerdictRule(**asked["verdict"])
    made = build_spec(asked, ExternalParts(teacher=teacher))
    shop = Workspace(made, Stages(Path(asked["stages"]), say=QUIET.print), QUIET, tracker=None)
    shop.prepare_data()
    return CheckContext(shop, limits, judge, folder / "scratch")


def report(folder: Path, *words: str, teacher: nn.Module | None = None) -> CheckReport:
    """All that the command finds."""
    return inspect_setup(
        config(folder, "check.seconds=0.1", *words, teacher=teacher),
        own=ExternalParts(teacher=teacher),
        console=QUIET,
    )


def names(findings: Any) -> list[str]:
    found: list[Finding] = list(findings)
    return [finding.name for finding in found]


class Fitted(nn.Module):
    """Least squares from pixels to classes: a teacher that is sound after a moment.
    `means[k]` is what its answer k stands for.
    """

    def __init__(self, image: Tensor, target: Tensor, classes: int) -> None:
        super().__init__()
        rows, wanted = image.flatten(1).double(), F.one_hot(target, classes).double()
        center = rows.mean(dim=0)
        rows = rows - center
        ridge = 0.001 * rows.square().sum() / rows.shape[1] * torch.eye(rows.shape[1])
        weight = torch.linalg.solve(rows.T @ rows + ridge, rows.T @ wanted)
        self.linear = nn.Linear(rows.shape[1], classes)
        self.linear.weight.data, self.linear.bias.data = (
            weight.T.float().contiguous(),
            (wanted.mean(dim=0) - center @ weight).float(),
        )

    def forward(self, image: Tensor) -> Tensor:
        return 10 * self.linear(image.flatten(1))  # type: ignore[no-any-return]


def fitted(sound: CheckContext, pixels: InputSpec | None = None) -> Fitted:
    """A teacher of this run's images as `pixels` has them; by default as a teacher of
    one's own is fed.
    """
    mean, std = sound.shop.data.compute_pixel_statistics()
    data, size = sound.shop.data, sound.shop.data.size
    asked = pixels or InputSpec(data.channels, size, size, mean, std)
    batches = list(data.sample("train", asked, 2000))
    scale = torch.tensor(asked.std).view(1, -1, 1, 1)
    image = (
        torch.cat([batch.image for batch in batches]) / 255
        - torch.tensor(asked.mean).view(1, -1, 1, 1)
    ) / scale
    return Fitted(image, torch.cat([batch.target for batch in batches]), len(data.classes))


class Changed(nn.Module):
    """A teacher with something done to its input or its answer."""

    def __init__(self, inner: nn.Module, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = self.inner(self.before(image) if self.before else image)
        return self.after(answer) if self.after else answer


class Stubborn(nn.BatchNorm2d):
    """Does not hear of eval mode."""

    def train(self, mode: bool = True) -> "Stubborn":
        self.training = True
        return self


COLORS = ((90, 60, 50), (50, 60, 90), (190, 150, 140), (120, 170, 160))


def colored(folder: Path, *, images: int = 60, side: int = 16, ready: bool = False) -> Path:
    """Photos of four classes, told apart by color and brightness alone; with ready
    splits, if asked.
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


def centered(folder: Path, *, images: int = 60) -> Path:
    """Photos of four classes, told apart by a pattern in their middle half."""
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
    """A term with a fault: zero, without gradient, infinite, or infinite where the
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
