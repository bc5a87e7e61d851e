"""Weights & Biases refuses, or dies in mid-run."""

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from kd_app.commands.app import guarded
from tests.commands.call import snapshot
from tests.faults.conftest import Fault
from tests.faults.whole_run import WORDS, outcome, places
from tests.tracking.wandb_server import serving
from tests.training.processes import ended, start


def _followed(words: list[str], log: Path, environment: Mapping[str, str], kills: bool) -> None:
    """In a process of its own: the run with W&B, whose processes are killed during the first validation where `kills`."""
    from kd_app.config.compose import composed
    from kd_app.training.module import Distillation
    from kd_app.training.run import distill

    os.setsid()
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    plain = Distillation.validation_step

    def validation_step(module: Distillation, batch: Any, batch_idx: int) -> None:
        for pid in subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=False).stdout.split() if kills else ():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        plain(module, batch, batch_idx)

    with patch.object(Distillation, "validation_step", validation_step):
        os._exit(guarded(lambda: distill(composed("distill", words))))


def followed(folder: Path, *, kills: bool = False, **environment: str) -> str:
    """What such a run says."""
    words = [*(word for word in WORDS if not word.startswith("logger")), "logger=[csv,wandb]", *places(folder)]
    clean = {"HOME": str(folder), "WANDB_MODE": "", **environment}
    assert ended(start(_followed, words, folder / "log", clean, kills)) == 0, (folder / "log").read_text(encoding="utf-8")
    return (folder / "log").read_text(encoding="utf-8")


def is_whole(folder: Path, undisturbed: Path) -> None:
    """Nothing is missing locally."""
    assert outcome(folder) == outcome(undisturbed)
    here, there = snapshot(folder / "out"), snapshot(undisturbed / "out")
    for name in ("metrics.csv", "predictions.parquet", "split.csv", "student/model.safetensors"):
        assert here[name] == there[name]


@pytest.mark.slow
def test_a_tracker_that_dies_in_mid_run_is_left_out_in_a_line(tmp_path: Path, undisturbed: Path, fault: Fault) -> None:
    said = followed(tmp_path, kills=True, WANDB_MODE="offline")
    assert said.count("logger wandb failed (") == 1
    assert said.count("is left out from here on; the run goes on.") == 1
    assert "Traceback" not in said
    is_whole(tmp_path, undisturbed)
    fault(
        "W&B's process dies in mid-run",
        happened="a line says so; the run ended with the same student and figures",
        lost="the rest of the run, in W&B",
    )


def test_a_server_that_refuses_the_key_means_offline(tmp_path: Path, undisturbed: Path, fault: Fault) -> None:
    with serving(refuses=True) as server:
        said = followed(tmp_path, WANDB_API_KEY="k" * 40, WANDB_BASE_URL=server.url)
    assert "W&B: offline (" in said
    assert list((tmp_path / "out" / "wandb").glob("offline-run-*"))
    is_whole(tmp_path, undisturbed)
    fault("W&B's server refuses", happened="a line says that W&B is offline; the run ended with the same student and figures", lost="nothing")
