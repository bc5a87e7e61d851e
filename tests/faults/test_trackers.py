"""Weights & Biases refuses, is slow, or dies in mid-run; a run that it follows is
killed.
"""

import csv
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from kd_app.commands.exit_codes import run_to_exit_code
from tests.commands.call import snapshot
from tests.faults.conftest import Fault
from tests.faults.whole_run import EPOCHS, STEPS, WORDS, outcome, places
from tests.tracking.wandb_files import offline_runs
from tests.tracking.wandb_server import serving
from tests.training.processes import distill_in_process, start, wait_for_exit


def _track_run(words: list[str], log: Path, environment: Mapping[str, str], kills: bool) -> None:
    """In a process of its own: the run with W&B, whose processes are killed during the
    first validation where `kills`.
    """
    from kd_app.config.compose import choose_all_labels, compose_config
    from kd_app.jobs.distill import distill
    from kd_app.training.module import Distillation

    os.setsid()
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.pop("WANDB_MODE", None)
    os.environ.update(environment)
    plain = Distillation.validation_step

    def validation_step(module: Distillation, batch: Any, batch_idx: int) -> None:
        for pid in (
            subprocess.run(
                ["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=False
            ).stdout.split()
            if kills
            else ()
        ):
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        plain(module, batch, batch_idx)

    with patch.object(Distillation, "validation_step", validation_step):
        config = compose_config("distill", choose_all_labels(words))
        os._exit(run_to_exit_code(lambda: distill(config)))


def _time_run(words: list[str], log: Path, environment: Mapping[str, str], times: Path) -> None:
    """In a process of its own: the run with W&B; writes down the seconds of all
    trainings, and of each call of the trackers during those.
    """
    from kd_app.tracking import Tracker
    from kd_app.training import fit

    train, tell = fit._run, Tracker._call_each
    seconds: dict[str, list[float]] = {"trainings": [], "calls": []}
    starts: list[float] = []

    def time_train(*args: Any, **options: Any) -> None:
        starts.append(time.perf_counter())
        try:
            train(*args, **options)
        finally:
            seconds["trainings"].append(time.perf_counter() - starts.pop())
            times.write_text(json.dumps(seconds), encoding="utf-8")

    def time_tell(*args: Any) -> None:
        start = time.perf_counter()
        tell(*args)
        if starts:
            seconds["calls"].append(time.perf_counter() - start)

    with patch.object(fit, "_run", time_train), patch.object(Tracker, "_call_each", time_tell):
        _track_run(words, log, environment, kills=False)


def run_tracked(folder: Path, *, kills: bool = False, **environment: str) -> str:
    """What such a run says."""
    words = [
        *(word for word in WORDS if not word.startswith("logger")),
        "logger=[csv,wandb]",
        *places(folder),
    ]
    clean = {"HOME": str(folder), **environment}
    assert wait_for_exit(start(_track_run, words, folder / "log", clean, kills)) == 0, (
        folder / "log"
    ).read_text(encoding="utf-8")
    return (folder / "log").read_text(encoding="utf-8")


def is_whole(folder: Path, reference_run: Path) -> None:
    """Nothing is missing locally."""
    assert outcome(folder) == outcome(reference_run)
    here, there = snapshot(folder / "out"), snapshot(reference_run / "out")
    for name in ("metrics.csv", "predictions.parquet", "split.csv", "student/model.safetensors"):
        assert here[name] == there[name]


@pytest.mark.slow
def test_a_tracker_that_dies_in_mid_run_is_left_out_in_a_line(
    tmp_path: Path, reference_run: Path, fault: Fault
) -> None:
    output = run_tracked(tmp_path, kills=True, WANDB_MODE="offline")
    assert output.count("logger wandb failed (") == 1
    assert output.count("is disabled; the run continues.") == 1
    assert "Traceback" not in output
    is_whole(tmp_path, reference_run)
    fault(
        "W&B's process dies in mid-run",
        happened="a line says so; the run ended with the same student and figures",
        lost="the rest of the run, in W&B",
    )


@pytest.mark.slow
def test_a_server_that_refuses_the_key_means_offline(
    tmp_path: Path, reference_run: Path, fault: Fault
) -> None:
    with serving(refuses=True) as server:
        output = run_tracked(tmp_path, WANDB_API_KEY="k" * 40, WANDB_BASE_URL=server.url)
    assert "W&B: offline (" in output
    assert "401" in output
    assert list((tmp_path / "out" / "wandb").glob("offline-run-*"))
    is_whole(tmp_path, reference_run)
    fault(
        "W&B's server refuses",
        happened="a line says that W&B is offline; the run ended with the same student and figures",
        lost="nothing",
    )


REAL = (
    "teacher=none",
    "student.name=wrn_16_2",
    "loss=[cross_entropy]",
    "data.batch_size=16",
    "trainer.max_epochs=2",
    "trainer.log_every=50",
    "logger=[csv,wandb]",
)
"""A small training: 81 steps an epoch, and a point of the curves after 50 of them, at
the epoch's end and after its validation.
"""


@pytest.mark.slow
def test_a_server_that_answers_slowly_holds_up_no_step_and_misses_nothing(
    tmp_path: Path, fault: Fault
) -> None:
    delay = 0.3
    words, log, times = [*REAL, *places(tmp_path)], tmp_path / "log", tmp_path / "times.json"
    with serving(delay=delay) as server:
        environment = {
            "HOME": str(tmp_path),
            "WANDB_API_KEY": "k" * 40,
            "WANDB_BASE_URL": server.url,
        }
        assert wait_for_exit(start(_time_run, words, log, environment, times)) == 0, log.read_text(
            encoding="utf-8"
        )
    assert f"W&B: {server.url}" in log.read_text(encoding="utf-8")
    seconds = json.loads(times.read_text(encoding="utf-8"))
    assert len(seconds["calls"]) == 6
    assert max(seconds["calls"]) < delay / 2  # nobody waited for an answer
    assert sum(seconds["calls"]) < 0.01 * sum(seconds["trainings"]), seconds
    with (tmp_path / "out" / "metrics.csv").open(encoding="utf-8") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    (history,) = server.histories.values()
    assert len(steps) == 6
    assert [row["step"] for row in history if "epoch" in row] == steps
    fault(
        "W&B's server answers every request 0.3 s late",
        happened=(
            "the trackers took less than 1 % of the training loop's time; every point is on disk,"
            " and on the server"
        ),
        lost="nothing",
    )


@pytest.mark.slow
def test_a_run_that_is_killed_is_one_run_in_weights_and_biases(
    tmp_path: Path, reference_run: Path, fault: Fault
) -> None:
    words = [
        *(word for word in WORDS if not word.startswith("logger")),
        "logger=[csv,wandb]",
        "logger.wandb.mode=offline",
        *places(tmp_path),
    ]
    last = 3 * EPOCHS * STEPS - 1  # the student's, after those of teacher and control
    assert (
        distill_in_process(
            words,
            str(tmp_path / "log"),
            ("kd_app.training.module:Distillation.training_step", last),
        )
        == -signal.SIGKILL
    )
    before = snapshot(tmp_path / "out" / "wandb")
    assert distill_in_process(words, str(tmp_path / "log")) == 0
    assert outcome(tmp_path) == outcome(reference_run)
    after = snapshot(tmp_path / "out" / "wandb")
    assert {name: after.get(name) for name in before if name.endswith(".wandb")} == {
        name: before[name] for name in before if name.endswith(".wandb")
    }
    runs = offline_runs(tmp_path / "out")
    student = runs["student"][-1]
    starts = Counter(
        path.name.rsplit("-", 1)[-1] for path in (tmp_path / "out" / "wandb").glob("offline-run-*")
    )
    assert starts[student.run.run_id] == 2
    assert len(starts) == 3
    with (tmp_path / "out" / "metrics.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == "student"]
    points = [row for row in student.history if "epoch" in row]
    assert [(row["step"], "train/loss" in row) for row in points] == [
        (int(row["step"]), row["train/loss"] != "") for row in rows
    ]
    assert (
        len({(row["step"], "train/loss" in row) for row in points})
        == len(points)
        == EPOCHS * (STEPS + 1)
    )
    fault(
        "kill -9 while W&B is offline, then the same words",
        happened=(
            "the same W&B run goes on in a second file, which holds every point once; the first"
            " file is as it was"
        ),
        lost="nothing",
    )
