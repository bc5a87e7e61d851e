"""kd-report: runs in, one page out; what it is not given is told in a paragraph."""

import json
import shutil
from pathlib import Path

import pytest

from kd_app.reporting.results import json_schema
from tests.commands.call import done, refused, snapshot

FILES = {"report.html", "report.json", "report.csv", "report.md"}


def report(*words: str) -> str:
    return done(*words, command="kd-report")


def names(folder: Path) -> list[str]:
    return [row["name"] for row in json.loads((folder / "report.json").read_text(encoding="utf-8"))["rows"]]


def test_a_single_runs_report_lies_in_its_own_folder_and_nothing_else_changes(run: Path) -> None:
    before = snapshot(run)
    assert "1 run: run/report.html" in report("runs=[run]")
    after = snapshot(run)
    assert set(after) - set(before) == FILES
    assert {name: after[name] for name in before} == before
    assert "Can the student replace the teacher?" in (run / "report.html").read_text(encoding="utf-8")


def test_runs_are_found_by_glob_by_folder_and_once_and_their_report_lies_beside_them(run: Path) -> None:
    for number in (0, 1, 10):
        shutil.copytree(run, f"sweep/{number}")
    report("runs=[sweep]")
    assert sorted(names(Path("sweep/report"))) == ["0", "1", "10"]
    report("runs=[sweep/1*,sweep/1,sweep/../sweep/10]", "out=two")
    assert sorted(names(Path("two"))) == ["1", "10"]
    report("runs=[run,sweep/0]")
    assert sorted(names(Path("report"))) == ["run", "sweep/0"]


def test_the_schema_is_that_of_results_json() -> None:
    assert json.loads(report("schema=true")) == json_schema()
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "needs to know which runs"),
        (("runs=[nowhere]",), "There is no 'nowhere'"),
        (("runs=[none*]",), "There is no 'none*'"),
        (("runs=[empty]",), "There is no run in 'empty'"),
        (("runs=[broken]",), "cut off or no JSON"),
        (("runs=[run]", "out=file/below"), "can't be made"),
        (("runs=run",), "runs='run' does not fit"),
        (("run=[run]",), "Did you mean 'runs'?"),
        (("runs=[run]", "schema=maybe"), "schema='maybe' does not fit"),
    ],
)
def test_a_wrong_request_is_told_in_a_paragraph(words: tuple[str, ...], said: str, run: Path) -> None:
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/results.json").write_text("{", encoding="utf-8")
    Path("file").write_text("", encoding="utf-8")
    assert said in refused(*words, command="kd-report")
