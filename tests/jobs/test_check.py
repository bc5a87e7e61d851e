"""kd-check prints its findings and refuses a run with any refusal."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kd_app.checks.context import CheckContext
from kd_app.checks.dry_run import DryRun
from kd_app.checks.finding import Finding, note, refuse, warn
from kd_app.checks.quick import read_limits
from kd_app.config import RequestError
from kd_app.jobs.check import (
    CHECKS,
    CheckReport,
    _open_scratch,
    _run_checks,
    _train_all_briefly,
    check,
)
from kd_app.reporting.console import Console
from kd_app.run.forecast import Forecast
from tests.checks.planted import QUIET, build_context

FINDINGS = (warn("b", "B."), refuse("a", "A."), note("d", "D."), refuse("a", "A2."))


def run_check(report: CheckReport, monkeypatch: pytest.MonkeyPatch) -> CheckReport:
    def inspect_setup(config: Any, *, own: Any, console: Any) -> CheckReport:
        return report

    monkeypatch.setattr("kd_app.jobs.check.inspect_setup", inspect_setup)
    return check({}, console=Console(silent=True))


def test_names_are_listed_once_by_severity() -> None:
    report = CheckReport(FINDINGS)
    assert report.list_names("refusal") == ["a"]
    assert report.list_names("warning") == ["b"]
    assert report.list_names("note") == ["d"]


def test_all_refusals_are_in_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=r"^Refused for 2 reasons\. a: A\. \| a: A2\.$"):
        run_check(CheckReport(FINDINGS), monkeypatch)


def test_warnings_and_notes_do_not_stop_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    report = CheckReport((FINDINGS[0], FINDINGS[2]), plan=("a plan",))
    assert run_check(report, monkeypatch) is report


def test_no_check_runs_twice() -> None:
    assert len(set(CHECKS)) == len(CHECKS)


@pytest.mark.parametrize(
    ("minutes", "run_seconds", "seconds"),
    [(2.0, 36_000, 120), (None, 36_000, 3600), (None, 100, 60), (None, None, 60)],
)
def test_the_checks_may_take_the_minutes_that_are_set_or_a_tenth_of_the_run(
    minutes: float | None, run_seconds: float | None, seconds: float
) -> None:
    forecast = None if run_seconds is None else Forecast(run_seconds, 0, 0, 0)
    assert read_limits(minutes=minutes).choose_seconds(forecast) == pytest.approx(seconds)


def test_once_the_time_is_over_other_checks_are_left_out_and_only_the_student_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_slowly(context: CheckContext) -> Iterator[Finding]:
        yield note("slow", "Slow.")
        context.deadline = time.monotonic()

    def check_last_thing(context: CheckContext) -> Iterator[Finding]:
        raise AssertionError("the time is over")

    def train(context: CheckContext, role: str, teacher: object, *, share: float) -> DryRun:
        return DryRun(role, 1)

    monkeypatch.setattr("kd_app.jobs.check.CHECKS", (check_slowly, check_last_thing))
    monkeypatch.setattr("kd_app.jobs.check.train_briefly", train)
    context = build_context(tmp_path, "teacher.name=resnet8", "controls=[labels_only]")
    assert context.seconds_left == math.inf
    slow, left_out = _run_checks(context, QUIET)
    assert (slow.name, left_out.name) == ("slow", "no-time")
    assert "left out: last thing. To include them, raise check.minutes" in left_out.text
    dry_runs, skipped = _train_all_briefly(context, QUIET)
    assert [result.role for result in dry_runs] == ["student"]
    assert skipped == ["the short training of teacher", "the short training of labels_only"]


def test_another_users_stages_are_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _open_scratch(tmp_path) as scratch:
        assert Path(scratch).parent == tmp_path
    monkeypatch.setattr("os.access", lambda *_: False)
    with _open_scratch(tmp_path) as scratch:
        assert Path(scratch).parent != tmp_path
