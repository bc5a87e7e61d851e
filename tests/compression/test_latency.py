"""Latencies are medians of models that run in turns in one runtime."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn

from kd_app.compression.latency import measure_latencies, time_models
from kd_app.config import RequestError
from tests.compression.tiny import PIXELS


def stub_workspace(folder: Path, lines: list[str]) -> Any:
    def find_or_build(
        name: str, config: object, inputs: object, build: Callable[[Path], None]
    ) -> SimpleNamespace:
        build(folder)
        return SimpleNamespace(path=folder)

    return SimpleNamespace(find_or_build=find_or_build, console=SimpleNamespace(print=lines.append))


def stub_model(module: nn.Module | None, program: Path | None = None) -> Any:
    weights = SimpleNamespace(sha256="")
    loaded = SimpleNamespace(model=module, pixels=PIXELS, weights=weights)
    return SimpleNamespace(loaded=loaded, spec=SimpleNamespace(name="tiny"), program=program)


def test_each_model_is_timed_in_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_app.compression.latency._SECONDS", 0.01)
    slow = nn.Sequential(*(nn.Conv2d(1, 1, 7, padding=3) for _ in range(30)))
    seconds = time_models({"fast": (nn.Identity(), PIXELS), "slow": (slow, PIXELS)})
    assert [len(each) for each in seconds.values()] == [20, 20]
    assert np.median(seconds["fast"]) < np.median(seconds["slow"])


def test_the_latency_is_the_median_in_milliseconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd_app.compression.latency.Lowered", lambda path: path)
    monkeypatch.setattr(
        "kd_app.compression.latency.time_models",
        lambda models: {name: np.array([[0.001, 0.009], [0.002, 0.003]]) for name in models},
    )
    model = stub_model(None, program=tmp_path / "quantized.pte")
    assert measure_latencies(stub_workspace(tmp_path, []), {"int8": model}) == {"int8": 2.5}


def test_without_the_runtime_there_are_no_latencies_and_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise RequestError("ExecuTorch is not installed.")

    monkeypatch.setattr("kd_app.compression.latency.Lowered", fail)
    lines: list[str] = []
    model = stub_model(None, program=tmp_path / "quantized.pte")
    assert measure_latencies(stub_workspace(tmp_path, lines), {"student": model}) == {}
    assert lines == ["Note: latency is not measured: ExecuTorch is not installed."]


@pytest.mark.slow
def test_a_model_in_channels_last_format_is_measured(teacher: nn.Module, tmp_path: Path) -> None:
    model = stub_model(deepcopy(teacher).to(memory_format=torch.channels_last))
    lines: list[str] = []
    with patch("kd_app.compression.latency._SECONDS", 0.02):
        latencies = measure_latencies(stub_workspace(tmp_path, lines), {"student": model})
    assert lines == []
    assert latencies["student"] > 0
