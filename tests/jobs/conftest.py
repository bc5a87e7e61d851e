"""The working directory of the commands' tests, and the files that kd-export writes
from the finished run.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from filelock import FileLock

from kd_app.config import InputSpec
from kd_app.deployment.cold_start import measure_cold_start
from kd_app.deployment.formats import onnx
from kd_app.deployment.formats.base import UInt8Model
from tests.commands.call import succeed
from tests.commands.conftest import _cwd

__all__ = ["_cwd"]

QUICK = (
    "benchmark.seconds=0.02",
    "benchmark.rounds=6",
    "benchmark.batch_sizes=[1,4]",
    "calibration_images=8",
    "compared_images=8",
)


def export_files(*overrides: str) -> str:
    """The output of kd-export, with short timings."""
    return succeed(*overrides, *QUICK, command="kd-export")


@contextmanager
def lower_once() -> Iterator[None]:
    """Lower a model to ONNX once for its float file and its int8 file, which takes more
    than a second each.
    """
    plain, files = onnx.write_onnx, dict[tuple[object, ...], bytes]()

    def write_once(model: UInt8Model, input_spec: InputSpec, path: Path, *, opset: int) -> None:
        state = sha256()
        for name, tensor in model.state_dict().items():
            state.update(name.encode() + tensor.numpy().tobytes())
        key = state.digest(), input_spec, opset
        if key not in files:
            plain(model, input_spec, path, opset=opset)
            files[key] = path.read_bytes()
        path.write_bytes(files[key])

    with (
        patch("kd_app.deployment.formats.onnx.write_onnx", write_once),
        patch("kd_app.deployment.formats.onnx_int8.write_onnx", write_once),
    ):
        yield


@contextmanager
def start_once() -> Iterator[None]:
    """Start one file in a process of its own, and take its times for all others."""
    measure_once = cache(lambda: measure_cold_start(*files[0]))
    files: list[Any] = []

    def measure(*file: Any) -> dict[str, float]:
        files.append(file)
        return measure_once()

    with patch("kd_app.measurement.exported_benchmark.measure_cold_start", measure):
        yield


@pytest.fixture(scope="session")
def both(sample_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Student and teacher of a copy of the finished run as ONNX files, and the output.
    The copy and its stages are beside the files; all test processes share them.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "both"
    run, stages, out, output = (folder / name for name in ("run", "stages", "export", "output"))
    with FileLock(f"{folder}.lock"):
        if not output.exists():
            shutil.copytree(sample_run, folder)
            with lower_once(), start_once():
                text = export_files(f"run={run}", f"stages={stages}", f"out={out}", "role=both")
            output.write_text(text, encoding="utf-8")
    return out, output.read_text(encoding="utf-8")
