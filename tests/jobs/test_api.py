"""``kd_app.distill`` composes the config of kd-distill and returns the run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import kd_app
from kd_app.config import RequestError
from kd_app.jobs import api


def test_overrides_and_external_parts_reach_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[dict[str, Any], Any]] = []

    def run_job(config: dict[str, Any], *, own: Any, **others: Any) -> Path:
        torch.manual_seed(config["seed"])
        calls.append((config, own))
        return tmp_path

    monkeypatch.setattr("kd_app.jobs.distill.distill", run_job)
    monkeypatch.setattr(api, "load_run", lambda folder: folder)
    student = nn.Linear(1, 1)
    before = torch.random.get_rng_state()
    run: object = kd_app.distill("seed=7", student=student)
    assert run is tmp_path
    ((config, own),) = calls
    assert config["seed"] == 7
    assert (own.teacher, own.student, own.data) == (None, student, None)
    # The job may seed torch; the caller's random state stays.
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_name_in_place_of_a_module_is_refused_with_the_override() -> None:
    with pytest.raises(RequestError, match=r'teacher= is of type str.*"teacher.name=resnet18"'):
        kd_app.distill(teacher="resnet18")  # type: ignore[arg-type]
