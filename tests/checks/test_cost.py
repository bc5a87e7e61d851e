"""The cost of a run is the sum of what its dry runs measured."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kd_app.checks.cost import describe_cost, estimate_cost
from kd_app.checks.dry_run import DryRun
from kd_app.run.forecast import Forecast
from kd_app.training.timing import EpochSteps, StepEstimate


def build_context(root: Path, *, world_size: int = 1) -> Any:
    trainer = SimpleNamespace(world_size=world_size, accelerator="cpu", precision="32-true")
    controls = {
        "labels_only": SimpleNamespace(match_wall_time=False),
        "match_wall_time": SimpleNamespace(match_wall_time=True),
    }
    workspace = SimpleNamespace(
        data=SimpleNamespace(sizes={"train": 800, "validation": 100, "test": 100}),
        classes=("a", "b"),
        spec=SimpleNamespace(controls=controls, teacher=object(), trainer=trainer),
        stages=SimpleNamespace(root=root / "not" / "yet"),
    )
    return SimpleNamespace(workspace=workspace, forecast=None)


def dry_run(role: str, seconds_per_epoch: float, model_bytes: int) -> DryRun:
    return DryRun(
        role,
        epochs=10,
        seconds_per_epoch=seconds_per_epoch,
        setup_seconds=1.0,
        inference_seconds=0.01,
        model_bytes=model_bytes,
        checkpoint_bytes=3 * model_bytes,
    )


DRY_RUNS = (
    dry_run("teacher", 4.0, 3000),
    dry_run("labels_only", 1.0, 1000),
    dry_run("match_wall_time", 1.0, 1000),
    dry_run("student", 2.0, 1000),
)


def test_the_cost_is_the_sum_over_all_trainings_and_predictions(tmp_path: Path) -> None:
    cost = estimate_cost(build_context(tmp_path), DRY_RUNS)
    # The control with the wall time of the student costs as much as the student.
    assert cost.training == {
        "teacher": 41.0,
        "labels_only": 11.0,
        "match_wall_time": 21.0,
        "student": 21.0,
    }
    assert cost.measuring == pytest.approx(200 * 4 * 0.01)
    assert cost.seconds == pytest.approx(94.0 + 8.0)
    predictions = 4 * 200 * (2 + 4) * 4
    assert cost.disk == 6000 + 1000 + predictions
    assert cost.peak_disk == cost.disk + 12000
    assert cost.memory > 0


def test_cached_outputs_are_computed_once_in_place_of_a_running_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = build_context(tmp_path)
    plain = estimate_cost(context, DRY_RUNS)
    steps = {"teacher": StepEstimate(training=1.0, inference=0.5, prediction=0.5)}
    context.forecast = Forecast(0.0, 9.0, 0.0, 0.0, caching=9.0, cache_bytes=2**30, steps=steps)
    context.workspace.spec.build_teacher_losses = lambda: {"student": object()}
    monkeypatch.setattr("kd_app.checks.cost.count_steps_per_epoch", lambda *_: EpochSteps(3, 1))
    cost = estimate_cost(context, DRY_RUNS)
    assert cost.training == {**plain.training, "match_wall_time": 6.0, "student": 6.0}
    assert cost.seconds == pytest.approx(sum(cost.training.values()) + cost.measuring + 9.0)
    assert cost.disk == plain.disk + 2**30
    assert "; 9 s and 1.0 GiB of it for the teacher's cached" in describe_cost(context, cost)[0]


def test_the_lines_name_every_training_and_warn_of_several_processes(tmp_path: Path) -> None:
    context = build_context(tmp_path, world_size=2)
    lines = describe_cost(context, estimate_cost(context, DRY_RUNS))
    assert [line.partition(":")[0] for line in lines] == ["Time", "Memory", "Disk", "Note"]
    assert "on 2 x cpu, 32-true; epochs: teacher 10 x 4 s = 41 s" in lines[0]
    assert "0.1 MiB permanently" in lines[2]
