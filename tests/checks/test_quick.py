"""What the checks before a training do with their findings."""

from pathlib import Path

import pytest

from kd_app.checks import quick
from kd_app.checks.context import CheckContext
from kd_app.checks.finding import Finding, warn
from kd_app.checks.quick import Mode, QuickChecks, read_limits
from kd_app.config import RequestError
from tests.checks.planted import Changed, build_context, fit_teacher


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> CheckContext:
    """A run with a ready teacher whose classes are permuted."""
    folder = tmp_path_factory.mktemp("digits")
    sound = fit_teacher(build_context(folder))
    return build_context(folder, teacher=Changed(sound, after=lambda z: z.roll(1, dims=1)))


def build_checks(context: CheckContext, mode: Mode | bool) -> QuickChecks:
    return QuickChecks.parse(context.workspace, context.verdict_rule, mode)


def test_a_refusal_ends_the_run_and_names_the_way_around(wrong: CheckContext) -> None:
    with pytest.raises(RequestError, match=r"^Refused for .*class-order.*set checks=warn\.$"):
        build_checks(wrong, "refuse").check_run(wrong.teacher, None)


def test_a_refusal_can_be_turned_into_a_warning_or_off(wrong: CheckContext) -> None:
    warnings = build_checks(wrong, "warn").check_run(wrong.teacher, None)
    assert any(text.startswith("teacher-class-order: ") for text in warnings)
    assert build_checks(wrong, "off").check_run(wrong.teacher, None) == []


def test_yaml_reads_on_and_off_as_bool(wrong: CheckContext) -> None:
    assert build_checks(wrong, mode=True).mode == "refuse"
    assert build_checks(wrong, mode=False).mode == "off"


def test_a_sound_teacher_has_no_warnings(tmp_path: Path) -> None:
    context = build_context(tmp_path, teacher=fit_teacher(build_context(tmp_path)))
    assert build_checks(context, "refuse").check_run(context.teacher, None) == []


def test_a_ready_teacher_is_checked_once_for_all_runs_on_the_same_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = build_context(tmp_path, teacher=fit_teacher(build_context(tmp_path)))
    calls = []

    def warn_once(context: CheckContext) -> list[Finding]:
        calls.append(context)
        return [warn("teacher-weak", "weak")]

    monkeypatch.setattr(quick, "TEACHER_CHECKS", (warn_once,))
    for _ in range(2):
        warnings = build_checks(context, "refuse").check_run(context.teacher, None)
        assert warnings == ["teacher-weak: weak"]
    assert len(calls) == 1


def test_a_refusal_is_not_kept(wrong: CheckContext) -> None:
    with pytest.raises(RequestError, match="class-order"):
        build_checks(wrong, "refuse").check_run(wrong.teacher, None)
    assert not list(wrong.workspace.stages.root.glob("check-teacher-*"))


def test_the_limits_are_those_of_the_other_command() -> None:
    assert read_limits(images=7).images == 7
    assert read_limits().significance == 0.001
