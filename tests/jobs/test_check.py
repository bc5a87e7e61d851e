"""kd-check prints its findings and refuses a run with any refusal."""

from typing import Any

import pytest

from kd_app.checks.finding import note, refuse, warn
from kd_app.config import RequestError
from kd_app.jobs.check import CHECKS, CheckReport, check
from kd_app.reporting.console import Console

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
