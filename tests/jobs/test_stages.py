"""``kd-report stages=...``: what is listed, and what is freed on request."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from kd_app.commands.report import _run_task
from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.jobs.stages import DAY, report_stages
from kd_app.reporting.console import Console
from kd_app.reporting.results import StageRecord, write
from kd_app.reporting.stages_table import StageRow
from kd_app.stages import RECORD, Stages
from tests.reporting.run_folders import build_results

SILENT = Console(silent=True)


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    """Stages of a week ago: a used and an unused one, an attempt, and other folders."""
    root = tmp_path / "runs" / ".stages"
    used = build(root, "teacher")
    build(root, "student", size=100)
    build(root, "prune", fails=True)
    for name in ("my-photos", "teacher-0123456789abcdef"):
        (root / name).mkdir()
        (root / name / "thesis.txt").write_text("work")
    (root / "link-1").symlink_to(used)
    write_run(tmp_path / "runs" / "a", used)
    for path in (*root.rglob("*"), *(tmp_path / "runs").rglob("*")):
        age(path, 7)
    return root


def build(root: Path, name: str, *, size: int = 10, fails: bool = False) -> Path:
    def fill(folder: Path) -> None:
        (folder / "weights").write_bytes(b"x" * size)
        if fails:
            raise OSError("disk full")

    try:
        return Stages(root).find_or_build(name, config={"lr": 1}, inputs={}, build=fill).path
    except OSError:
        return next(root.glob(f"{name}-*.partial"))


def age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then), follow_symlinks=False)


def write_run(run: Path, *used: Path, **changes: Any) -> None:
    run.mkdir(parents=True, exist_ok=True)
    records = [
        StageRecord(name="teacher", path=str(path), seconds=1.0, status="computed") for path in used
    ]
    (run / "config.yaml").write_text("seed: 0\n")
    write(run / "results.json", build_results(stages=records, **changes))


def free(stages: Path, **settings: Any) -> list[str]:
    """The stages that are removed, without the hash."""
    before = set(os.listdir(stages))
    report_stages(stages, [str(stages.parent)], free=True, console=SILENT, **settings)
    gone = before - set(os.listdir(stages))
    return sorted(name.partition("-")[0] for name in gone)


def name_rows(rows: list[StageRow]) -> dict[str, StageRow]:
    return {row.stage.name.partition("-")[0]: row for row in rows}


def test_stages_are_listed_by_size_with_age_and_runs(stages: Path) -> None:
    before = sorted(path for path in stages.rglob("*"))
    rows = report_stages(stages, [], console=SILENT)
    assert rows[0].stage.name.startswith("student-")
    named = name_rows(rows)
    assert set(named) == {"student", "teacher", "prune"}
    assert named["student"].stage.size_bytes > named["teacher"].stage.size_bytes > 10
    assert {name: round(row.days) for name, row in named.items()} == dict.fromkeys(named, 7)
    assert {name: row.stage.is_finished for name, row in named.items()} == {
        "student": True,
        "teacher": True,
        "prune": False,
    }
    assert [run.name for run in named["teacher"].runs] == ["a"]
    assert named["student"].runs == ()
    assert sorted(path for path in stages.rglob("*")) == before


def test_only_old_stages_without_a_run_are_freed(stages: Path) -> None:
    assert free(stages) == ["prune", "student"]
    assert free(stages) == []
    assert (stages / "my-photos" / "thesis.txt").read_text() == "work"
    assert (stages / "teacher-0123456789abcdef" / "thesis.txt").read_text() == "work"
    assert (stages / "link-1" / "weights").is_file()


def test_a_copied_or_changed_record_is_no_stage(stages: Path) -> None:
    (student,) = stages.glob("student-*")
    student.rename(stages / "student-0123456789abcdef")
    (teacher,) = stages.glob("teacher-[!0]*")
    (teacher / RECORD).write_text((teacher / RECORD).read_text().replace("lr", "rl"))
    assert free(stages) == ["prune"]


def touch_student(stages: Path) -> None:
    (student,) = stages.glob("student-*")
    age(student / "weights", 0.5)


def touch_attempt(stages: Path) -> None:
    (attempt,) = stages.glob("prune-*")
    age(attempt / "weights", 0.5)


def name_in_config(stages: Path) -> None:
    (student,) = stages.glob("student-*")
    checkpoint = {"checkpoint": str(student / "model")}
    write_run(stages.parent / "b", config={"teacher": checkpoint, "seed": 0})


def interrupt(stages: Path) -> None:
    """A run that was killed, whose stages are not recorded."""
    write_run(stages.parent / "b", status="running")
    age(stages.parent / "b" / "config.yaml", 8)


@pytest.mark.parametrize(
    ("prepare", "freed"),
    [
        (touch_student, ["prune"]),
        (touch_attempt, ["student"]),
        (name_in_config, ["prune"]),
        (interrupt, []),
    ],
)
def test_what_may_be_needed_stays(
    stages: Path, prepare: Callable[[Path], None], freed: list[str]
) -> None:
    prepare(stages)
    assert free(stages) == freed


def test_a_locked_stage_stays(stages: Path) -> None:
    (student,) = stages.glob("student-*")
    with FileLock(stages / f".{student.name}.lock", is_singleton=False):
        assert free(stages) == ["prune"]
    assert free(stages) == ["student"]


def test_the_age_is_a_setting_except_for_attempts(stages: Path) -> None:
    touch_student(stages)
    touch_attempt(stages)
    assert free(stages, keep_days=30) == []
    assert free(stages, keep_days=0) == ["student"]


def test_a_run_that_cant_be_read_frees_nothing(stages: Path) -> None:
    (stages.parent / "b").mkdir()
    (stages.parent / "b" / "results.json").write_text("{")
    with pytest.raises(RequestError, match=r"b/results\.json.*nothing was removed"):
        free(stages)
    assert len(list(stages.glob("[!.]*-*"))) == 6
    assert len(report_stages(stages, [], console=SILENT)) == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["free=true"], "free=true removes cached stages, and stages= names no folder"),
        (["stages=nowhere"], "There is no folder stages=.*nowhere"),
        (["stages=.", "free=true"], r"runs= names no runs\. Name all folders"),
        (["stages=.", "keep_days=-1"], "keep_days=-1"),
    ],
)
def test_a_wrong_request_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        _run_task(compose_config("report", overrides), None)


def test_without_the_word_nothing_is_removed_and_the_fix_is_named(
    stages: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(stages.parents[1])
    _run_task(compose_config("report", ["stages=runs/.stages"]), None)
    text = " ".join(capsys.readouterr().out.split())
    assert "2 stages of 0.0 MiB could be freed: no run refers to them. Nothing was removed" in text
    assert len(list(stages.glob("[!.]*-*"))) == 6
