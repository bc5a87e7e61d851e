"""Every experiment and every way to debug runs from end to end, small."""

import json
from pathlib import Path

import pytest

from kd_app.config.compose import choices, composed
from kd_app.training.curves import read_curves
from tests.commands.call import call, done
from tests.training.made import results, stage

SMALL = ("teacher.name=resnet8", "logger=[csv]", "out=run", "stages=stages")


@pytest.fixture(autouse=True)
def _cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_experiment_runs_for_two_batches(name: str) -> None:
    done(f"experiment={name}", "debug=fdr", "logger=[csv]", "out=run", "stages=stages")
    found = results(Path("run"))
    assert found["status"] == "finished"
    assert found["config"]["loss"].keys() == composed("distill", [f"experiment={name}"])["loss"].keys()
    points = list(read_curves(stage(Path("run"), "student") / "curves.jsonl"))
    for term in found["config"]["loss"]:
        values = [point[f"train/{term}"] for point in points if f"train/{term}" in point]
        assert len(values) == 2
        assert all(value > 0 for value in values)


@pytest.mark.parametrize("name", choices("debug"))
def test_every_way_to_debug_runs(name: str) -> None:
    few = {"overfit": ("trainer.max_epochs=8",), "default": ("trainer.limit_train_batches=3",), "profiler": ("trainer.limit_train_batches=3",)}
    ended = call(f"debug={name}", *few.get(name, ()), *SMALL)
    assert ended.code == 0, ended.err
    assert results(Path("run"))["status"] == "finished"


def test_overfitting_learns_its_two_batches() -> None:
    done("debug=overfit", "trainer.max_epochs=15", "teacher=none", "loss=[cross_entropy]", *SMALL[1:])
    losses = [point["train/loss"] for point in read_curves(stage(Path("run"), "student") / "curves.jsonl") if "train/loss" in point]
    assert len(losses) == 30
    assert losses[-1] < 0.7 * losses[0]


def test_two_batches_are_two_batches_of_everything() -> None:
    done("debug=fdr", *SMALL, "data.batch_size=16")
    found = results(Path("run"))
    assert found["validation"]["num_images"] == found["test"]["num_images"] == 32
    rows = [json.loads(line) for line in (stage(Path("run"), "student") / "curves.jsonl").read_text(encoding="utf-8").splitlines()]
    assert max(row["step"] for row in rows) == 2
