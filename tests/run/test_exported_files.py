"""Exported files as stages."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_app.config import RequestError
from kd_app.deployment.formats.base import Format
from kd_app.deployment.formats.executorch import ExecuTorchInt8
from kd_app.deployment.formats.onnx import Onnx
from kd_app.run.exported_files import sample_images, write_files
from kd_app.run.model import RunModel
from kd_app.run.workspace import Workspace
from tests.deployment.graphs import reuse_graph, write_linear
from tests.reporting.run_folders import build_results


@dataclass
class Request:
    """One file of the student."""

    formats: dict[str, Format]
    roles: tuple[str, ...] = ("student",)
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    calibration_images: int = 4
    compared_images: int = 4

    def __post_init__(self) -> None:
        self.nodes = {name: {"name": name} for name in self.formats}


def test_samples_are_uint8_images_of_the_models_input(
    digits: Workspace, models: dict[str, RunModel]
) -> None:
    batches = sample_images(digits, "validation", models["student"].loaded.pixels, 3)
    images = np.concatenate(batches)
    assert images.dtype == np.uint8
    assert images.shape == (3, 1, 8, 8)


def test_a_file_is_written_once(
    digits: Workspace, models: dict[str, RunModel], tmp_path: Path
) -> None:
    request = Request({"onnx": Onnx(opset=18, tolerance=1e3)})
    linear = write_linear(tmp_path, models["student"].loaded.pixels, tuple(digits.classes))
    with reuse_graph(linear):
        first = write_files(digits, build_results(), models, request)
    assert list(first) == ["model.onnx"]
    file = first["model.onnx"]
    assert (file.role, file.format, file.entry["role"]) == ("student", "onnx", "student")
    time = file.path.stat().st_mtime_ns
    again = write_files(digits, build_results(), models, request)["model.onnx"]
    assert again.path == file.path
    assert again.path.stat().st_mtime_ns == time


def test_a_quantized_student_without_its_program_is_refused(
    digits: Workspace, models: dict[str, RunModel], tmp_path: Path
) -> None:
    quantized = {"student": replace(models["student"], program=tmp_path / "int8.pt2")}
    request = Request({"executorch_int8": ExecuTorchInt8(max_batch=2)})
    with pytest.raises(RequestError, match="int8 program of the quantized student is missing"):
        write_files(digits, build_results(), quantized, request)
