"""Accuracy on corrupted images."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kd_app.data.corruptions import Corruption
from kd_app.measurement.robustness import UNDECIDED, find_top1, measure_robustness
from kd_app.reporting.console import Console

TARGET = np.array([0, 1, 1, 0])
NOISE, BLUR = Corruption("gaussian_noise", 1), Corruption("gaussian_blur", 3)


class FakeWorkspace:
    """Predicts known classes, and keeps the stages in one folder."""

    def __init__(self, folder: Path, *corruptions: Corruption) -> None:
        self.spec = SimpleNamespace(robustness=SimpleNamespace(chosen=corruptions))
        self.console = Console(silent=True)
        self.calls: list[tuple[str, Corruption]] = []
        self._folder = folder

    def predict(self, model: Any, split: str, *, corruption: Corruption, spool: Path) -> Any:
        assert spool.is_dir()  # logits stay on disk
        self.calls.append((model.role, corruption))
        logits = np.eye(2)[TARGET]
        if model.role == "student":
            logits = logits[::-1].copy() if corruption == BLUR else logits
            logits[0] = np.nan
        return SimpleNamespace(logits=logits)

    def cache_outputs(
        self, model: Any, split: str, name: str, settings: Any, build: Callable[[Path], None]
    ) -> Any:
        folder = self._folder / f"{name}-{model.role}-{split}"
        folder.mkdir(exist_ok=True)
        build(folder)
        return SimpleNamespace(path=folder)


def measure(workspace: FakeWorkspace, *roles: str) -> Any:
    models: Any = {role: SimpleNamespace(role=role) for role in roles}
    return measure_robustness(workspace, models, "test", TARGET)  # type: ignore[arg-type]


def test_each_corruption_has_accuracy_and_agreement(tmp_path: Path) -> None:
    noise, blur = measure(FakeWorkspace(tmp_path, NOISE, BLUR), "teacher", "student")
    assert (noise.corruption, noise.severity, noise.num_images) == ("gaussian_noise", 1, 4)
    assert noise.accuracy == {"teacher": 1.0, "student": 0.75}
    assert noise.agreement == 0.75
    assert (blur.severity, blur.accuracy["student"]) == (3, 0.75)


def test_nan_is_no_class(tmp_path: Path) -> None:
    (only,) = measure(FakeWorkspace(tmp_path, NOISE), "student")
    assert only.agreement is None
    saved = np.load(tmp_path / "corrupted-student-test" / "gaussian_noise-1.npy")
    assert saved[0] == UNDECIDED


def test_only_missing_corruptions_are_computed(tmp_path: Path) -> None:
    measure(FakeWorkspace(tmp_path, NOISE), "student")
    again = FakeWorkspace(tmp_path, NOISE, BLUR)
    assert len(measure(again, "student")) == 2
    assert again.calls == [("student", BLUR)]


@pytest.mark.parametrize("roles", [("student",), ("teacher", "student")])
def test_without_corruptions_nothing_is_measured(roles: tuple[str, ...], tmp_path: Path) -> None:
    workspace = FakeWorkspace(tmp_path)
    assert measure(workspace, *roles) == []
    assert workspace.calls == []


def test_the_top1_class_is_found_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(0).normal(size=(10, 6))
    logits[4, 2] = np.nan
    monkeypatch.setattr("kd_app.metrics.blocks.VALUES", 13)
    top1 = find_top1(logits)
    assert top1[4] == UNDECIDED
    assert np.delete(top1, 4).tolist() == np.delete(logits, 4, axis=0).argmax(axis=1).tolist()
