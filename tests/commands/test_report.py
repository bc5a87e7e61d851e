"""kd-report: runs in, one page out; what it is not given is told in a paragraph."""

import json
import shutil
from pathlib import Path

import pytest

from kd_app.reporting.results import build_json_schema
from tests.commands.call import TINY, expect_refusal, snapshot, succeed
from tests.tracking.wandb_files import offline_runs

FILES = {"report.html", "report.json", "report.csv", "report.md"}


def report(*words: str) -> str:
    return succeed(*words, command="kd-report")


def names(folder: Path) -> list[str]:
    return [
        row["name"]
        for row in json.loads((folder / "report.json").read_text(encoding="utf-8"))["rows"]
    ]


def test_a_single_runs_report_lies_in_its_own_folder_and_nothing_else_changes(run: Path) -> None:
    for name in FILES:
        (run / name).unlink()
    before = snapshot(run)
    assert "1 run: run/report.html" in report("runs=[run]")
    after = snapshot(run)
    assert set(after) - set(before) == FILES
    assert {name: after[name] for name in before} == before
    assert "Can the student replace the teacher?" in (run / "report.html").read_text(
        encoding="utf-8"
    )


def test_a_run_ends_with_its_report_which_kd_report_makes_again_as_it_was(run: Path) -> None:
    before = {name: (run / name).read_bytes() for name in FILES}
    report("runs=[run]")
    assert {name: (run / name).read_bytes() for name in FILES} == before


def test_runs_are_found_by_glob_by_folder_and_once_and_their_report_lies_beside_them(
    run: Path,
) -> None:
    for number in (0, 1, 10):
        shutil.copytree(run, f"sweep/{number}")
    report("runs=[sweep]")
    assert sorted(names(Path("sweep/report"))) == ["0", "1", "10"]
    report("runs=[sweep/1*,sweep/1,sweep/../sweep/10]", "out=two")
    assert sorted(names(Path("two"))) == ["1", "10"]
    report("runs=[run,sweep/0]")
    assert sorted(names(Path("report"))) == ["run", "sweep/0"]


def test_the_schema_is_that_of_results_json() -> None:
    assert json.loads(report("schema=true")) == build_json_schema()
    assert list(Path.cwd().iterdir()) == []


def test_a_report_that_is_sent_to_weights_and_biases_is_made_from_the_students_that_it_is_about(
    run: Path, sample_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeed(
        *TINY,
        f"stages={sample_run / 'stages'}",
        "remake=[student]",
        "logger=[wandb]",
        "logger.wandb.mode=offline",
        f"out={run}",
    )
    output = report(f"runs=[{run}]", "logger=[wandb]", "logger.wandb.mode=offline")
    assert names(run) == ["run"]  # what W&B keeps copies of is no other run
    assert "wandb sync" in output
    runs = offline_runs(run)
    (ships,) = [each for each in runs["student"][0].artifacts if each.type == "student"]
    (used,) = [each for each in runs["report"][0].artifacts if each.use_after_commit]
    (page,) = [each for each in runs["report"][0].artifacts if not each.use_after_commit]
    assert (used.type, used.name, used.digest) == ("student", ships.name, ships.digest)
    assert (page.type, [entry.path for entry in page.manifest.contents]) == (
        "report",
        ["report.html"],
    )
    assert runs["report"][0].run.run_group == runs["student"][0].run.run_group == "run"
    assert str(sample_run) not in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "needs runs, but runs= is empty"),
        (("runs=[nowhere]",), "There is no 'nowhere'"),
        (("runs=[none*]",), "There is no 'none*'"),
        (("runs=[empty]",), "There is no run in 'empty'"),
        (("runs=[broken]",), "truncated or not JSON"),
        (("runs=[run]", "out=file/below"), "'file' is a file, not a folder"),
        (("runs=run",), "runs='run' does not fit"),
        (("run=[run]",), "Did you mean 'runs'?"),
        (("runs=[run]", "schema=maybe"), "schema='maybe' does not fit"),
    ],
)
def test_a_wrong_request_is_told_in_a_paragraph(
    words: tuple[str, ...], message: str, run: Path
) -> None:
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/results.json").write_text("{", encoding="utf-8")
    Path("file").write_text("", encoding="utf-8")
    assert message in expect_refusal(*words, command="kd-report")
