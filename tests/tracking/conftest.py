"""A whole run that Weights & Biases tracked offline."""

from pathlib import Path

import pytest

from tests.tracking.runs import wandb, whole_run
from tests.tracking.wandb_files import OfflineRun, offline_runs


@pytest.fixture(scope="session")
def tracked_runs(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[str], dict[str, OfflineRun]]:
    out = tmp_path_factory.mktemp("home") / "fm"
    messages = whole_run(out, {"wandb": wandb()})
    return out, messages, {stage: runs[0] for stage, runs in offline_runs(out).items()}
