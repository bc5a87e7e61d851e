"""kd-export writes the files of a run, a manifest, and a recommendation."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from kd_app.deployment import own_files
from kd_app.deployment.artifact import open_artifact
from kd_app.deployment.formats.onnx import Onnx
from kd_app.deployment.formats.onnx_int8 import OnnxInt8
from kd_app.digest import hash_file
from kd_app.metrics.record import Predictions
from kd_app.reporting.exports import read_exports
from tests.builders import results
from tests.commands.call import TINY, call, expect_refusal, paragraph, succeed
from tests.jobs.conftest import QUICK, export_files


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))


@pytest.fixture
def source(both: tuple[Path, str]) -> Path:
    """The folder with the run and the stages from which the files were exported."""
    return both[0].parent


def test_each_file_has_its_own_metrics_speed_and_cost(source: Path, both: tuple[Path, str]) -> None:
    record, run = manifest(both[0]), results(source / "run")
    assert list(record["files"]) == [
        "model.onnx",
        "model_int8.onnx",
        "teacher.onnx",
        "teacher_int8.onnx",
    ]
    for name, file in record["files"].items():
        assert file["sha256"] == hash_file(both[0] / name)
        assert file["size_bytes"] == (both[0] / name).stat().st_size
        assert file["classes"] == run["data"]["classes"]
        assert file["runtime"]["name"] == "onnxruntime"
        assert (
            0 < file["latency_ms"]["p50"] <= file["latency_ms"]["p95"] <= file["latency_ms"]["p99"]
        )
        assert file["cost_per_million"] == pytest.approx(
            1e6 / file["images_per_second"] / 3600 * 0.04 * max(1.0, file["cores"])
        )
        assert file["peak_memory_bytes"] > 10_000_000
        assert 0 < file["start_seconds"] < file["cold_start_seconds"]
        for split in ("validation", "test"):
            assert (
                0 <= file[split]["top1_low"] <= file[split]["top1"] <= file[split]["top1_high"] <= 1
            )
            assert {"negative_flips", "agreement", "nll", "verdict", "beside_torch"} <= set(
                file[split]
            )
    assert record["files"]["model.onnx"]["license"] == run["models"]["student"]["license"]
    assert record["torch"]["teacher"]["test"]["top1"] == run["test"]["teacher"]["top1"]
    assert record["torch"]["student"]["test"]["top1"] == run["test"]["student"]["top1"]


def test_a_float_file_has_the_predictions_of_the_model_in_torch(both: tuple[Path, str]) -> None:
    record = manifest(both[0])
    for role, name in (("student", "model.onnx"), ("teacher", "teacher.onnx")):
        file = record["files"][name]
        assert file["test"]["top1"] == record["torch"][role]["test"]["top1"]
        assert file["test"]["beside_torch"]["agreement"] == 1
        assert file["test"]["beside_torch"]["negative_flips"] == 0
        assert file["largest_difference"] < 1e-3


def test_the_metrics_are_those_of_the_file(source: Path, both: tuple[Path, str]) -> None:
    """The stored predictions of the file have the accuracy in the manifest."""
    stage = next((source / "stages").glob("answers-model_int8.onnx-test-*"))
    entry, stored = manifest(both[0])["files"]["model_int8.onnx"], Predictions.load(stage)
    assert entry["test"]["num_images"] == len(stored.target)
    assert entry["test"]["top1"] == float((stored.logits.argmax(axis=1) == stored.target).mean())
    opened = open_artifact(both[0] / "model_int8.onnx")
    assert opened.infer_logits(
        np.zeros((3, opened.pixels.channels, opened.pixels.height, opened.pixels.width), np.uint8)
    ).shape == (3, 10)


def test_the_recommended_file_has_the_smallest_bound_of_its_loss(
    both: tuple[Path, str],
) -> None:
    record = manifest(both[0])
    files = {name: file for name, file in record["files"].items() if file["role"] == "student"}
    bounds = {name: each["validation"]["beside_torch"]["lost_high"] for name, each in files.items()}
    # 143 validation images can't show a loss of at most 1 point.
    assert min(bounds.values()) > 0.01
    assert bounds[record["ship"]] == min(bounds.values())
    assert f"Ship {record['ship']}" in both[1]
    assert "images/s" in both[1]
    assert "USD per core-hour" in both[1]


def test_a_report_reads_the_manifest(both: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "export").symlink_to(both[0])
    exports = read_exports(tmp_path)
    assert exports is not None
    assert exports.ship == manifest(both[0])["ship"]
    assert exports.torch["teacher"].latency_ms is not None


def test_a_second_command_reuses_files_and_predictions_and_reads_no_test_with_never(
    source: Path, both: tuple[Path, str], tmp_path: Path
) -> None:
    before = {path.name for path in (source / "stages").iterdir()}
    with patch("kd_app.measurement.exported_benchmark.measure_cold_start", lambda *_: {}):
        export_files(
            f"run={source / 'run'}",
            f"stages={source / 'stages'}",
            f"out={tmp_path / 'again'}",
            "formats=[onnx]",
            "test=never",
        )
    assert {path.name for path in (source / "stages").iterdir()} == before
    record = manifest(tmp_path / "again")["files"]["model.onnx"]
    assert "test" not in record
    assert record["sha256"] == manifest(both[0])["files"]["model.onnx"]["sha256"]


@pytest.mark.slow
def test_a_torch_program_is_never_reused(sample_run: Path, tmp_path: Path) -> None:
    overrides = (
        f"run={sample_run / 'run'}",
        f"stages={tmp_path / 'stages'}",
        "formats=[program]",
        "test=never",
    )
    for name in ("first", "second"):
        export_files(*overrides, f"out={tmp_path / name}")
        record = manifest(tmp_path / name)["files"]["model.pt2"]
        assert record["validation"]["beside_torch"]["agreement"] == 1
        assert record["images_per_second"] > 0
        assert record["runtime"]["name"] == "torch"
        own_files._WRITTEN.clear()  # as in a new process


@pytest.mark.slow
def test_another_run_with_the_same_teacher_reuses_the_teachers_files(
    source: Path, both: tuple[Path, str], tmp_path: Path
) -> None:
    stages = f"stages={source / 'stages'}"
    succeed(*TINY, "seed=1", f"out={tmp_path / 'other'}", stages)
    before = {path.name for path in (source / "stages").iterdir()}
    with patch("kd_app.measurement.exported_benchmark.measure_cold_start", lambda *_: {}):
        export_files(
            f"run={tmp_path / 'other'}", stages, f"out={tmp_path / 'export'}", "role=teacher"
        )
    assert {path.name for path in (source / "stages").iterdir()} == before
    assert (
        results(tmp_path / "other")["models"]["student"]["sha256"]
        != results(source / "run")["models"]["student"]["sha256"]
    )
    for name in ("teacher.onnx", "teacher_int8.onnx"):
        entry, other = (
            manifest(folder)["files"][name] for folder in (tmp_path / "export", both[0])
        )
        assert all(
            entry[key] == other[key]
            for key in ("sha256", "largest_difference", "validation", "test")
        )


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("formats=[onnx]", "formats.onnx.opset=12"), "opset=12 does not fit"),
        (("formats=[onnxx]",), "There is no formats 'onnxx'. Did you mean 'onnx'?"),
        (("remake=[export-teacher-onnx]",), "There is no stage to remake 'export-teacher-onnx'"),
        (("formats=[onnx]", "+formats.more._target_=builtins.dict"), "dict, expected a Format"),
    ],
)
def test_a_wrong_request_is_refused_with_the_reason(
    sample_run: Path, overrides: tuple[str, ...], reason: str
) -> None:
    assert reason in expect_refusal(
        f"run={sample_run / 'run'}",
        f"stages={sample_run / 'stages'}",
        "out=export",
        *overrides,
        command="kd-export",
    )


def test_a_file_that_differs_from_its_model_fails_and_leaves_no_manifest(
    source: Path, both: tuple[Path, str]
) -> None:
    overrides = (
        f"run={source / 'run'}",
        f"stages={source / 'stages'}",
        "out=export",
        "formats=[onnx]",
        "formats.onnx.tolerance=1e-12",
        *QUICK,
    )

    def lower_as_before(model: Any, pixels: Any, path: Path, *, opset: int) -> None:
        shutil.copy(both[0] / "model.onnx", path)

    with patch("kd_app.deployment.formats.onnx.write_onnx", lower_as_before):
        result = call(*overrides, command="kd-export")
    assert result.code == 1
    assert "does not reproduce the model" in paragraph(result.err)
    assert not (Path("export") / "manifest.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "stop",
    [KeyboardInterrupt, OSError("No space left on device")],
    ids=["interrupted", "disk full"],
)
def test_a_command_that_stopped_at_its_second_file_reuses_the_first(
    sample_run: Path, tmp_path: Path, stop: Any
) -> None:
    overrides = (
        f"run={sample_run / 'run'}",
        f"stages={tmp_path / 'stages'}",
        f"out={tmp_path / 'export'}",
        "test=never",
        *QUICK,
    )

    def write_half(
        self: OnnxInt8, model: Any, pixels: Any, calibration: Any, path: Path
    ) -> dict[str, Any]:
        path.write_bytes(b"half")
        raise stop

    with patch.object(OnnxInt8, "write", write_half):
        assert call(*overrides, command="kd-export").code != 0
    assert not (tmp_path / "export" / "manifest.json").exists()
    with (
        patch("kd_app.measurement.exported_benchmark.measure_cold_start", lambda *_: {}),
        patch.object(Onnx, "write", side_effect=AssertionError("not reused")),
    ):
        export_files(*overrides)
    assert list(manifest(tmp_path / "export")["files"]) == ["model.onnx", "model_int8.onnx"]
    assert open_artifact(tmp_path / "export" / "model_int8.onnx").classes
