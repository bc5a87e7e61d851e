"""A sweep: what trials share is made once, the winner by validation alone is tested,
and the same words repeat nothing.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import kd_app
from tests.builders import results
from tests.commands.call import (
    TINY,
    CommandResult,
    call,
    expect_refusal,
    list_epochs,
    paragraph,
    snapshot,
    succeed,
)

SWEEP = ("-m", "loss.soft_target.temperature=1,2", "seed=0,1", "examples=0")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished sweep of four trials, and what it said; nobody writes there."""
    folder = tmp_path_factory.mktemp("swept")
    return folder, succeed(*TINY, *SWEEP, f"out={folder / 'sweep'}", f"stages={folder / 'stages'}")


def trials(sweep: Path) -> dict[str, dict[str, Any]]:
    return {path.name: results(path) for path in sorted(sweep.iterdir()) if path.name != "report"}


def test_trials_lie_in_numbered_folders_beside_a_page_about_them_and_nothing_else_does(
    swept: tuple[Path, str],
) -> None:
    content = trials(swept[0] / "sweep")
    assert sorted(path.name for path in (swept[0] / "sweep" / "report").iterdir()) == [
        "report.csv",
        "report.html",
        "report.json",
        "report.md",
    ]
    assert str(swept[0] / "sweep" / "report" / "report.html") in swept[1].replace("\n", "")
    assert list(content) == ["0", "1", "2", "3"]
    pairs = [
        (each["config"]["loss"]["soft_target"]["temperature"], each["seed"])
        for each in content.values()
    ]
    assert pairs == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_trials_share_the_teacher_and_its_speed_and_those_of_one_seed_the_control(
    swept: tuple[Path, str],
) -> None:
    stages = [
        stage
        for each in trials(swept[0] / "sweep").values()
        for stage in each["stages"]
        if stage["name"] in ("teacher", "labels_only", "student", "speed")
    ]
    assert Counter((stage["name"], stage["status"]) for stage in stages) == {
        ("teacher", "computed"): 1,
        ("teacher", "reused"): 3,
        ("labels_only", "computed"): 2,
        ("labels_only", "reused"): 2,
        ("student", "computed"): 4,
        ("speed", "computed"): 1,
        ("speed", "reused"): 3,
    }
    assert len({stage["path"] for stage in stages}) == 1 + 2 + 4 + 1


def test_only_the_winner_by_validation_is_tested(swept: tuple[Path, str]) -> None:
    content = trials(swept[0] / "sweep")
    scores = {number: each["validation"]["student"]["top1"] for number, each in content.items()}
    winner = max(scores, key=lambda number: (scores[number], -int(number)))
    assert [number for number, each in content.items() if each["test"]] == [winner]
    assert content[winner]["verdict"]["split"] == "test"


def test_the_table_lists_the_trials_best_first_by_what_they_differ_in(
    swept: tuple[Path, str],
) -> None:
    folder, out = swept
    table = out[out.index("Validation top-1 of each trial") :]
    rows = re.findall(
        r"^ *(\*?) *(\d) +(loss\.\S+=\d)\D.* finished +([\d.]+) %", table, re.MULTILINE
    )
    assert len(rows) == 4
    accuracies = [float(top1) for *_, top1 in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert [bool(star) for star, *_ in rows] == [True, False, False, False]
    assert "seed=1" in table
    assert f"Trial {rows[0][1]} won on validation. Its test top-1 is" in table
    assert str(folder / "sweep") in table


def test_the_same_sweep_again_repeats_nothing(swept: tuple[Path, str]) -> None:
    folder, first = swept
    before = snapshot(folder)
    out = succeed(*TINY, *SWEEP, f"out={folder / 'sweep'}", f"stages={folder / 'stages'}")
    after = snapshot(folder)
    assert {name for name in {**before, **after} if before.get(name) != after.get(name)} <= {
        f"sweep/{number}/config.yaml" for number in range(4)
    }
    assert out[out.index("Validation top-1") :] == first[first.index("Validation top-1") :]
    assert list_epochs(out) == []


def test_the_runs_of_a_sweep_are_read_as_one_table(swept: tuple[Path, str], run: Path) -> None:
    folder, _ = swept
    runs = kd_app.load_runs(folder)  # the stages beside them are no runs
    assert len(runs) == 4
    assert set(runs["status"]) == {"finished"}
    assert sorted(runs["config.seed"]) == [0, 0, 1, 1]
    assert runs["test.student.top1"].notna().sum() == 1
    assert len(kd_app.load_runs(run.parent)) == 1
    assert (runs["models.teacher.sha256"] == runs["models.teacher.sha256"][0]).all()


def test_a_trial_that_is_refused_does_not_end_the_sweep_and_shows_in_the_exit_code(
    swept: tuple[Path, str],
) -> None:
    result = call(
        *TINY,
        "-m",
        "loss.soft_target.temperature=-1,1",
        "examples=0",
        "out=sweep",
        f"stages={swept[0] / 'stages'}",
    )
    assert result.code == 2
    reason = "SoftTarget: temperature=-1 does not fit"
    assert paragraph(result.err).startswith(f"Trial 0: {reason}")
    assert sorted(path.name for path in Path("sweep").iterdir()) == ["1", "refused", "report"]
    assert re.search(r"^ +0 +loss\.soft_target\.temperature=-1 +refused", result.out, re.MULTILINE)
    assert f"Trial 0 refused: {reason}" in result.out
    assert f"refused: {reason}" in Path("sweep/report/report.html").read_text(encoding="utf-8")
    assert "Trial 1 won on validation" in result.out


@pytest.mark.slow
def test_a_trial_that_fails_does_not_end_the_sweep_and_shows_in_the_exit_code(
    swept: tuple[Path, str],
) -> None:
    result = call(
        *TINY,
        "-m",
        "optimizer.lr=1000,0.003",
        "optimizer.weight_decay=1000",
        "teacher.optimizer.lr=0.003",
        "out=sweep",
        f"stages={swept[0] / 'stages'}",
    )
    assert result.code == 1
    first, last = result.err.splitlines()
    assert first.startswith("Trial 0: The run failed: The loss term ")
    assert last.startswith("The run failed: 1 of 2 trials failed (trial 0: The loss term ")
    assert [each["status"] for each in trials(Path("sweep")).values()] == ["failed", "finished"]
    assert "failed" in result.out
    assert "Trial 1 won on validation" in result.out


@pytest.mark.parametrize(
    "words",
    [
        "loss.soft_target.temperature=-1,-2",
        "seed=0,1 loss.soft_target.temprature=1",
        "loss=[cross_entropy,soft_target],[cross_entropy,soft_targt]",
        "seed=0,1 data=folder data.root=/nonexistent",
    ],
)
def test_a_sweep_that_is_wrong_in_all_trials_leaves_nothing(words: str) -> None:
    result: CommandResult = call("-m", *words.split(), "out=sweep")
    assert result.code == 2
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) in (1, 2)  # one a trial, or one for all
    assert list(Path.cwd().iterdir()) == []


def test_a_sweep_over_no_value_is_refused() -> None:
    assert "No trial of the sweep ran" in expect_refusal("-m", "seed=range(1,0)", "out=empty")


@pytest.mark.slow
def test_a_sweep_without_a_folder_finds_its_own_again(swept: tuple[Path, str]) -> None:
    words = (
        *TINY,
        "-m",
        "loss.soft_target.temperature=1",
        "seed=0,1",
        f"stages={swept[0] / 'stages'}",
    )
    succeed(*words)
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("sweep-")
    assert "holds this run, finished" in succeed(*words)
    assert [path.name for path in Path("runs").iterdir()] == [folder.name]


def test_other_words_for_a_sweep_that_is_there_are_refused_trial_by_trial(
    swept: tuple[Path, str],
) -> None:
    sweep = swept[0] / "sweep"
    before = snapshot(sweep)
    result = call(
        *TINY,
        "-m",
        "loss.soft_target.temperature=3,4",
        f"out={sweep}",
        f"stages={swept[0] / 'stages'}",
    )
    assert result.code == 2
    assert [line[:9] for line in result.err.splitlines()] == ["Trial 0: ", "Trial 1: "]
    assert "loss.soft_target.temperature was 1, now 3" in result.err
    assert snapshot(sweep) == before


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_a_sweep_that_is_stopped_starts_no_other_trial(stop: BaseException, code: int) -> None:
    with (
        patch("kd_app.jobs.distill.distill", side_effect=stop) as started,
        patch("kd_app.jobs.sweep.finish_sweep") as concluded,
    ):
        result = call("-m", "seed=0,1,2", "out=sweep")
    assert result.code == code
    assert "run the same command again to resume" in paragraph(result.err)
    assert started.call_count == 1
    assert not concluded.called


def test_words_for_one_run_and_a_sweeps_folder_do_not_go_together(swept: tuple[Path, str]) -> None:
    assert "is not a run folder: it contains 0, but no config.yaml" in expect_refusal(
        *TINY, f"out={swept[0] / 'sweep'}"
    )
