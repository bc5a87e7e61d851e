"""A search by the command: killed and said again, with trials that fail, that are
hopeless, and that run beside each other.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.builders import results
from tests.commands.call import TINY, call, expect_refusal, list_epochs, succeed
from tests.training.processes import start_command, wait_for, wait_for_exit

SEARCH = (
    "-m",
    "hparams_search=temperature",
    "hydra.sweeper.trials=2",
    "controls=[]",
    "examples=0",
)
"""Two trials of the temperature and its weight."""


def places(folder: Path) -> list[str]:
    return [f"out={folder / 'search'}", f"stages={folder / 'stages'}"]


def read_proposals(search: Path) -> list[dict[str, Any]]:
    content = json.loads((search / "search.json").read_text(encoding="utf-8"))
    proposals: list[dict[str, Any]] = content["proposed"]
    return proposals


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "kd_app.commands.distill", *words]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A search that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, succeed(*TINY, *SEARCH, *places(folder))


def test_a_search_runs_what_it_proposes_and_tests_the_winner_alone(whole: tuple[Path, str]) -> None:
    search, output = whole[0] / "search", whole[1]
    trials = {int(path.name): results(path) for path in search.glob("[0-9]*")}
    assert sorted(trials) == [0, 1]
    pairs = [
        (
            trials[n]["config"]["loss"]["soft_target"]["temperature"],
            trials[n]["config"]["loss"]["soft_target"]["weight"],
        )
        for n in range(2)
    ]
    assert pairs == [tuple(params.values()) for params in read_proposals(search)]
    assert len(set(pairs)) == 2
    assert all(1 <= temperature <= 16 and 0.1 <= weight <= 2 for temperature, weight in pairs)
    assert sum(trial["test"] is not None for trial in trials.values()) == 1
    assert "won on validation" in output
    assert sorted(path.name for path in search.iterdir()) == [
        "0",
        "1",
        "report",
        "search.json",
    ]


def test_a_search_that_is_done_shows_its_table_and_repeats_nothing(whole: tuple[Path, str]) -> None:
    search = whole[0] / "search"
    before = {path: path.read_bytes() for path in search.rglob("*") if path.is_file()}
    output = succeed(*TINY, *SEARCH, *places(whole[0]))
    assert "won on validation" in output
    assert list_epochs(output) == []
    assert {path: path.read_bytes() for path in search.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_and_ends_with_the_same_trials(
    whole: tuple[Path, str], tmp_path: Path
) -> None:
    for number in (0, 1):
        process = start_command([*TINY, *SEARCH, *places(tmp_path)], str(tmp_path / "log"))
        wait_for(tmp_path, f"search/{number}/config.yaml", 120)
        process.kill()
        assert wait_for_exit(process) == -signal.SIGKILL
        assert not (tmp_path / "search" / "report").exists()
    succeed(*TINY, *SEARCH, *places(tmp_path))
    assert read_proposals(tmp_path / "search") == read_proposals(whole[0] / "search")
    for number in range(2):
        ours, theirs = (
            results(folder / "search" / str(number))["validation"]["student"]["top1"]
            for folder in (tmp_path, whole[0])
        )
        assert ours == theirs


@pytest.mark.slow
def test_a_trial_that_fails_is_told_with_its_reason_and_the_others_are_done(tmp_path: Path) -> None:
    rates = [
        "hydra/sweeper=search",
        "hydra.sweeper.sampler=grid",
        "optimizer=sgd",
        "optimizer.lr=choice(0.01,1e30,0.02)",
        "trainer.log_every=1",
    ]
    brief = ["trainer.max_epochs=1", "teacher.max_epochs=1", "trainer.limit_train_batches=4"]
    failed = call("logger=[csv]", "teacher.name=resnet8", "-m", *rates, *brief, *places(tmp_path))
    assert failed.code == 1
    assert [results(tmp_path / "search" / str(n))["status"] for n in range(3)] == [
        "finished",
        "failed",
        "finished",
    ]
    assert "1 of 3 trials failed (trial 1: The loss term" in failed.err.splitlines()[-1]


@pytest.mark.slow
def test_two_objectives_end_with_the_trials_that_none_beats(tmp_path: Path) -> None:
    sizes = [
        "hparams_search=student",
        "student.name=choice(resnet8,resnet14)",
        "hydra.sweeper.trials=2",
    ]
    output = succeed(
        "debug=fdr", "logger=[csv]", "teacher.name=resnet8", "-m", *sizes, *places(tmp_path)
    )
    assert "Trials that no other trial beats in all of selection, models.student.macs:" in " ".join(
        output.split()
    )


@pytest.mark.slow
def test_a_hopeless_trial_is_ended_early_and_that_is_an_end(tmp_path: Path) -> None:
    rates = "optimizer.lr=choice(0.003,0.0031,0.0032,0.0033,0.0000001)"
    words = [
        "-m",
        "hydra/sweeper=search",
        "hydra.sweeper.sampler=grid",
        rates,
        "trial_pruning=median",
        "trainer.max_epochs=4",
        "teacher.max_epochs=1",
    ]
    words += ["controls=[]", "trainer.limit_train_batches=4"]
    output = succeed("logger=[csv]", "teacher.name=resnet8", *words, *places(tmp_path))
    trials = [results(tmp_path / "search" / str(number)) for number in range(5)]
    assert [trial["status"] for trial in trials] == ["finished"] * 4 + ["pruned"]
    assert trials[4]["reason"].startswith("Ended after epoch 2: validation top1 ")
    assert "Ended after epoch 2" in output
    curve = pd.read_csv(tmp_path / "search" / "4" / "metrics.csv")
    assert curve["validation/top1"].count() == 2
    again = succeed("logger=[csv]", "teacher.name=resnet8", *words, *places(tmp_path))
    assert list_epochs(again) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hparams_search=temperatur"], "Did you mean 'temperature'?"),
        (["hydra/sweeper=search"], "The search space is empty"),
        (
            ["hparams_search=temperature", "hydra.sweeper.trials=0"],
            "trials=0 does not fit: expected greater than 0",
        ),
        (
            ["hparams_search=temperature", "hydra.sweeper.sampler=cmaes"],
            "sampler='cmaes' does not fit",
        ),
        (["hparams_search=temperature", "hydra.sweeper.sampler=grid"], "needs discrete values"),
        (
            ["hydra/sweeper=search", "loss.soft_target.temprature=interval(1,2)"],
            "Did you mean 'loss.soft_target.temperature'?",
        ),
    ],
)
def test_a_wrong_search_is_refused_in_one_paragraph(
    words: list[str], message: str, tmp_path: Path
) -> None:
    assert message in expect_refusal(*TINY, "-m", *words, *places(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "seeds"), [("joblib", "01"), ("submitit_local", "0")])
def test_trials_run_in_other_processes_and_end_with_one_table(
    launcher: str, seeds: str, tmp_path: Path
) -> None:
    words = command(
        *TINY, "-m", f"hydra/launcher={launcher}", f"seed={','.join(seeds)}", *places(tmp_path)
    )
    finished = subprocess.run(
        words,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "WANDB_MODE": "disabled"},
        timeout=200,
    )
    assert finished.returncode == 0, finished.stderr
    assert {results(tmp_path / "search" / n)["status"] for n in seeds} == {"finished"}
    assert finished.stdout.count("won on validation") == 1


@pytest.mark.slow
def test_a_preempted_trial_is_sent_again_and_goes_on_where_it_was(tmp_path: Path) -> None:
    brief = [
        "controls=[]",
        "trainer.max_epochs=60",
        "trainer.checkpoint_minutes=60",
        "teacher.max_epochs=1",
    ]
    words = command(
        "teacher.name=resnet8",
        "logger=[csv]",
        "-m",
        *brief,
        "hydra/launcher=submitit_local",
        f"hydra.launcher.submitit_folder={tmp_path}/jobs",
        "seed=0",
    )
    process = subprocess.Popen(
        [*words, *places(tmp_path)], env={**os.environ, "WANDB_MODE": "disabled"}
    )
    wait_for(tmp_path, "stages/student-*/last.ckpt", 200)
    (task,) = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"submitit.core._submit" in (line := path.read_bytes())
        and str(tmp_path).encode() in line
    ]
    os.kill(task, signal.SIGUSR2)
    assert process.wait(400) == 0
    assert results(tmp_path / "search" / "0")["status"] == "finished"
    (output,) = tmp_path.glob("jobs/*_log.out")
    assert "Requeued job" in output.with_suffix(".err").read_text() + output.read_text()
    assert "student: resumes at step" in output.read_text()
