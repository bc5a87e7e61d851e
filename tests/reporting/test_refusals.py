"""Records of the refused trials of a sweep."""

from pathlib import Path

import pytest

from kd_app.reporting.html import write_report
from kd_app.reporting.refusals import (
    Refusal,
    TrialRefusedError,
    list_refusals,
    read_refusal,
    remove_refusal,
    write_refusal,
)
from kd_app.reporting.runs import find_runs, load_run, load_runs
from tests.reporting.html.folders import run_folder


def test_refused_trials_are_listed_by_number_with_overrides_and_reason(tmp_path: Path) -> None:
    for number in (10, 2):
        write_refusal(tmp_path / str(number), [f"seed={number}"], "No such seed.")
    assert list_refusals(tmp_path) == [
        Refusal(2, ("seed=2",), "No such seed."),
        Refusal(10, ("seed=10",), "No such seed."),
    ]


def test_a_trial_that_is_not_refused_any_more_has_no_record(tmp_path: Path) -> None:
    for number in "01":
        write_refusal(tmp_path / number, [], "No.")
    remove_refusal(tmp_path / "0")
    assert [refusal.number for refusal in list_refusals(tmp_path)] == [1]
    remove_refusal(tmp_path / "1")
    remove_refusal(tmp_path / "1")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_kept_is_not_a_refused_trial(tmp_path: Path) -> None:
    write_refusal(tmp_path / "0", [], "No.")
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "config.yaml").touch()
    write_refusal(tmp_path / "0", [], "Another configuration.")
    assert list_refusals(tmp_path) == []


@pytest.mark.parametrize("content", ["", "[]", '{"reason": "No."}'])
def test_a_damaged_record_still_counts(tmp_path: Path, content: str) -> None:
    write_refusal(tmp_path / "0", [], "No.")
    (tmp_path / "refused" / "0.json").write_text(content, encoding="utf-8")
    refusal = read_refusal(tmp_path / "0")
    assert refusal is not None
    assert "can't be read" in refusal.reason


def test_refused_trials_are_rows_of_the_table_of_runs_and_of_the_report(tmp_path: Path) -> None:
    run_folder(tmp_path / "1")
    write_refusal(tmp_path / "0", ["seed=0"], "No such seed.")
    rows = load_runs(tmp_path)
    assert list(rows["path"]) == [str(tmp_path / "0"), str(tmp_path / "1")]
    assert list(rows["status"]) == ["refused", "finished"]
    assert rows["reason"][0] == "No such seed."
    with pytest.raises(TrialRefusedError, match=r"^No such seed\.$"):
        load_run(tmp_path / "0")
    write_report(find_runs([str(tmp_path)]), tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "refused: No such seed." in page
