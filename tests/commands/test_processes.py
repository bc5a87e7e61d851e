"""The installed commands in processes of their own: exit codes, what goes to stdout and
what to stderr, signals, and how fast they answer.
"""

import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.builders import results
from tests.commands.call import TINY, call, paragraph, process, script, surroundings

ALONE = (
    "teacher=none",
    "loss=[cross_entropy]",
    "logger=[csv]",
    "trainer.max_epochs=40",
    "out=run",
    "stages=stages",
)
"""One training of a few seconds."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty working directory, which is not the home directory."""
    return tmp_path / "here"


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_and_version_are_there_at_once(word: str, home: Path) -> None:
    times = []
    for _ in range(3):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        result = process(word, cwd=home)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall, work = (
            time.perf_counter() - start,
            used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
        )
        times.append(min(wall, work))  # its own work where others keep the machine busy
        assert (result.code, result.err) == (0, "")
    assert min(times) < 0.25, times


def test_nothing_heavy_is_imported_before_there_is_work() -> None:
    heavy = {"torch", "lightning", "timm", "wandb", "pandas", "sklearn", "matplotlib", "scipy"}
    program = (
        "import sys, kd_app, kd_app.commands.distill, kd_app.commands.evaluate;"
        f" print({heavy!r} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"


def test_the_configuration_is_printed_and_nothing_is_done(home: Path) -> None:
    result = process("--cfg", "job", "seed=3", cwd=home)
    assert (result.code, result.err) == (0, "")
    assert yaml.safe_load(result.out)["seed"] == 3
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("command", ["kd-distill", "kd-evaluate"])
def test_tab_completion_can_be_installed(home: Path, command: str) -> None:
    result = process("--shell-completion", "install=bash", cwd=home, command=command)
    assert (result.code, result.err) == (0, "")
    assert "complete -o nospace" in result.out
    assert command in result.out


def test_a_wrong_request_is_one_line_on_stderr_and_exit_code_2(home: Path) -> None:
    result = process("loss.soft_target.temprature=2", cwd=home)
    assert (result.code, result.out) == (2, "")
    assert "Did you mean 'loss.soft_target.temperature'?" in paragraph(result.err)
    assert list(home.iterdir()) == []


@pytest.mark.slow  # in this process: tests/security/test_secrets.py
def test_as_it_comes_a_run_follows_itself_offline_and_asks_nobody(home: Path) -> None:
    result = process(
        "debug=fdr",
        "teacher.name=resnet8",
        "controls=[]",
        "out=run",
        "stages=stages",
        cwd=home,
    )
    assert (result.code, result.err) == (0, "")
    (line,) = [line for line in result.out.splitlines() if "wandb sync" in line]
    assert "offline" in line
    assert len(list((home / "run" / "wandb").glob("offline-run-*"))) == 2
    assert result.out.splitlines()[0].startswith("Data: 10 classes")
    assert result.out.splitlines()[-1] == "Everything is in run"
    assert {path.name for path in home.iterdir() if not path.name.startswith(".")} == {
        "run",
        "stages",
    }
    assert {path.name for path in (home / "run").iterdir()} >= {
        "config.yaml",
        "results.json",
        "predictions.parquet",
        "metrics.csv",
        "student",
        "teacher",
    }


@pytest.mark.slow
def test_a_hub_out_of_reach_is_told_soon_and_once(home: Path) -> None:
    start = time.perf_counter()
    result = process(
        *TINY[:2],
        "teacher.name=resnet18.a1_in1k",
        "out=run",
        cwd=home,
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    assert (
        time.perf_counter() - start < 60
    )  # most of it imports; the hub's client alone would try again for a minute
    assert result.code == 2
    message = paragraph(result.err)
    assert "The weights of 'resnet18.a1_in1k' could not be fetched from their hub" in message
    assert "name=local-dir:<folder> or checkpoint=<file>" in message
    assert not (home / "run").exists()


@pytest.mark.slow
def test_a_run_that_is_stopped_says_so_and_the_same_words_go_on(home: Path) -> None:
    output, code = stop_run(home, signal.SIGINT, epochs=2)
    assert code == 130
    assert (
        output == "Stopped by Ctrl-C. Completed work is kept: run the same command again to resume."
    )
    assert results(home / "run")["status"] == "running"
    output, code = stop_run(home, signal.SIGTERM, epochs=8)
    assert code == 143
    assert (
        output
        == "Stopped by SIGTERM. Completed work is kept: run the same command again to resume."
    )
    result = call(*ALONE)
    assert (result.code, result.err) == (0, "")
    assert int(re.findall(r"resumes at step (\d+)", result.out)[0]) >= 80  # ten steps an epoch
    assert results(home / "run")["status"] == "finished"


def stop_run(folder: Path, number: signal.Signals, *, epochs: int) -> tuple[str, int]:
    """Start the command, send it the signal when it has validated so many epochs; its
    paragraph and exit code.
    """
    command, quiet, pipe = [script("kd-distill"), *ALONE], subprocess.DEVNULL, subprocess.PIPE
    running = subprocess.Popen(
        command, cwd=folder, env=surroundings(folder), stdout=quiet, stderr=pipe, text=True
    )
    while count_validations(folder) < epochs:
        assert running.poll() is None, "it ended before it was stopped"
        time.sleep(0.02)
    running.send_signal(number)
    _, err = running.communicate(timeout=120)
    return err.splitlines()[-1], running.returncode


def count_validations(folder: Path) -> int:
    return sum(
        path.read_text(encoding="utf-8").count("validation/top1")
        for path in folder.glob("stages/student-*.partial/curves.jsonl")
    )
