"""Loss terms without effect or that dominate, and students that do not learn."""

import math
from pathlib import Path

import pytest

from kd_app.checks.context import CheckContext
from kd_app.checks.dry_run import DryRun
from kd_app.checks.loss_terms import check_loss_terms
from tests.checks.planted import HERE, Fitted, build_context, fit_teacher, list_names, report


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose stages hold the prepared data."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def context(folder: Path) -> CheckContext:
    return build_context(folder, "teacher.name=resnet8")


@pytest.fixture(scope="module")
def teacher(context: CheckContext) -> Fitted:
    return fit_teacher(context)


def plant(fault: str, weight: float = 1.0) -> tuple[str, ...]:
    return (
        f"+loss.planted._target_={HERE}.Planted",
        f"+loss.planted.fault={fault}",
        f"+loss.planted.weight={weight}",
    )


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (plant("zero"), "term-zero"),
        (plant("no-gradient"), "term-no-gradient"),
        (plant("infinite"), "term-not-finite"),
        ((*plant("half"), "trainer.precision=bf16-mixed"), "term-not-finite"),
        (("loss.soft_target.weight=0",), "term-zero"),
    ],
    ids=["zero", "no gradient", "infinite", "infinite in bf16", "weight 0"],
)
def test_a_term_that_teaches_nothing_is_refused(
    overrides: tuple[str, ...], name: str, folder: Path, teacher: Fitted
) -> None:
    result = report(folder, *overrides, teacher=teacher)
    assert result.list_names("refusal") == [name]


def test_the_same_term_is_fine_in_full_precision(folder: Path, teacher: Fitted) -> None:
    result = report(folder, *plant("half", weight=1e-6), teacher=teacher)
    assert result.list_names("refusal") == []


def test_all_faults_are_reported_at_once(folder: Path, teacher: Fitted) -> None:
    second = [
        (
            word.replace("planted", "other")
            if "_target_" not in word
            else word.replace("loss.planted", "loss.other")
        )
        for word in plant("zero")
    ]
    result = report(folder, *plant("infinite"), *second, teacher=teacher)
    assert set(result.list_names("refusal")) == {"term-not-finite", "term-zero"}


def test_a_term_with_nearly_all_of_the_gradient_is_a_warning(folder: Path, teacher: Fitted) -> None:
    result = report(
        folder,
        "loss.soft_target.weight=10000",
        "verdict.margin=0.1",
        teacher=teacher,
    )
    assert result.list_names("warning") == ["term-dominates"]
    assert "The loss term soft_target has 100.0%" in next(
        finding.text for finding in result.findings if finding.name == "term-dominates"
    )


@pytest.mark.parametrize(
    ("steps", "from_random", "after", "names"),
    [
        (6, False, 2.0, []),
        (6, True, 2.0, []),
        (40, True, 2.0, []),
        (40, False, 2.0, ["learns-nothing"]),
        (40, False, math.nan, ["learns-nothing"]),
        (120, True, 2.0, ["learns-nothing"]),
        (120, True, 1.9, []),
    ],
)
def test_only_a_loss_that_does_not_fall_in_many_steps_is_reported(
    steps: int, from_random: bool, after: float, names: list[str], context: CheckContext
) -> None:
    result = DryRun("student", 10, before=2.0, after=after, steps=steps, from_random=from_random)
    assert list_names(check_loss_terms(context, [result])) == names
