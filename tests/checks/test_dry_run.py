"""A dry run trains with the run's own parts, and records time, sizes and loss terms."""

import math
from pathlib import Path

import pytest

from kd_app.checks.dry_run import DryRun, TermProbe, train_briefly
from kd_app.training.module import CHECKED_STEPS
from tests.checks.planted import build_context, fit_teacher


def test_a_short_training_of_the_student_is_measured(tmp_path: Path) -> None:
    teacher = fit_teacher(build_context(tmp_path))
    context = build_context(tmp_path, "check.seconds=0.1", teacher=teacher)
    assert context.any_teacher is not None
    result = train_briefly(context, "student", context.any_teacher)
    assert (result.role, result.error, result.faults) == ("student", "", ())
    assert result.epochs == context.workspace.spec.recipe.max_epochs
    assert result.steps > CHECKED_STEPS
    assert 0 < result.after < result.before
    assert set(result.shares) == {"cross_entropy", "soft_target"}
    assert sum(result.shares.values()) == pytest.approx(1)
    assert 0 < result.seconds_per_epoch < result.seconds
    assert result.inference_seconds > 0
    assert 0 < result.model_bytes < result.checkpoint_bytes
    assert result.loaded is not None


def test_the_seconds_of_a_training_include_its_setup() -> None:
    assert DryRun("student", 10, seconds_per_epoch=2.0, setup_seconds=3.0).seconds == 23.0
    assert math.isnan(DryRun("student", 10).seconds)


def test_shares_are_parts_of_the_sum_of_all_norms() -> None:
    probe = TermProbe()
    assert probe.compute_shares() == {}
    probe.norms = [{"a": 0.0, "b": 0.0}]
    assert probe.compute_shares() == {}
    probe.norms = [{"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 4.0}]
    assert probe.compute_shares() == {"a": 0.25, "b": 0.75}
