"""The step quantize: which units stay in float, and from a run to a run."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from torch import nn

from kd_app.compression.graph import QuantizationProbe, trace
from kd_app.compression.quantize import Quantize
from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.digest import hash_file
from kd_app.specs.spec import build_spec
from tests.builders import results
from tests.commands.call import expect_refusal, succeed
from tests.compression.tiny import (
    PIXELS,
    Digits,
    list_batches,
    quantize_after_training,
    top1,
)
from tests.jobs.conftest import QUICK


def step(**settings: object) -> Quantize:
    defaults = {
        "images": 16,
        "epochs": 0,
        "lr": None,
        "terms": None,
        "keep_float": "auto",
        "divergence": 0.02,
        "per_channel": True,
    }
    return Quantize(**{**defaults, **settings})  # type: ignore[arg-type]


@pytest.mark.slow
def test_auto_keeps_the_layers_in_float_without_which_int8_collapses(
    student: nn.Module, digits: Digits
) -> None:
    before = top1(student, digits)
    assert before > 0.85
    all_int8 = quantize_after_training(student, digits, float_units=[], per_channel=False)
    assert top1(all_int8, digits) < before - 0.2
    probe = QuantizationProbe(trace(student, PIXELS), list_batches(digits), per_channel=True)
    float_units, record = step().select_float_units(probe)
    assert 0 < len(float_units) < record["units"]
    assert record["divergence"] <= 0.02 < probe.measure_without([])
    assert max(record["sensitivity"], key=record["sensitivity"].__getitem__) in float_units
    mixed = quantize_after_training(student, digits, float_units=float_units, per_channel=True)
    assert top1(mixed, digits) > before - 0.02


def test_units_are_kept_in_float_by_their_name_or_that_of_a_module_around() -> None:
    class Probe:
        units = ("stem", "layer1.0.conv1", "layer1.0", "layer10")

        def measure_only(self, unit: str) -> float:
            return 0.0

        def measure_without(self, float_units: list[str]) -> float:
            return 0.5

    probe: Any = Probe()
    float_units, record = step(keep_float=["layer1"]).select_float_units(probe)
    assert float_units == ["layer1.0.conv1", "layer1.0"]
    assert (record["units"], record["divergence"]) == (4, 0.5)
    message = r"There is no unit to keep in float 'stm'\. Did you mean 'stem'"
    with pytest.raises(RequestError, match=message):
        step(keep_float=["stm"]).select_float_units(probe)


def test_terms_that_read_more_than_logits_are_refused_with_the_usable_ones() -> None:
    overrides = ["loss=[cross_entropy,soft_target,feature_hint]"]
    workspace: Any = SimpleNamespace(spec=build_spec(compose_config("distill", overrides)))
    student: Any = SimpleNamespace(loaded=None)
    message = (
        r"term feature_hint reads more \(features\)\. To train with the other terms, set"
        r" quantize.terms=\[cross_entropy,soft_target\]"
    )
    with pytest.raises(RequestError, match=message):
        step(epochs=1).take("quantize", workspace, student, None)


IMAGES = "quantize.images=32"


@pytest.fixture(scope="module")
def int8_run(sample_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The finished run with a student that was trained on in int8, and the output."""
    out = tmp_path_factory.mktemp("int8") / "run"
    overrides = ("steps=[quantize]", "quantize.epochs=1", IMAGES)
    return out, succeed(
        f"run={sample_run / 'run'}",
        *overrides,
        f"out={out}",
        f"stages={sample_run / 'stages'}",
        command="kd-compress",
    )


@pytest.mark.slow
def test_the_result_is_a_run_whose_student_is_measured_as_an_int8_program(
    sample_run: Path, int8_run: tuple[Path, str]
) -> None:
    before, after = results(sample_run / "run"), results(int8_run[0])
    assert after["status"] == "finished"
    *_, row, instead = after["steps"]
    assert row["latency_ms"] == 1.0
    # int8 halves the (stubbed) latency, which counts like half the multiply-adds.
    assert instead["details"]["macs"] == pytest.approx(row["macs"] / 2, abs=1)
    assert row["name"] == "quantize"
    assert row["size_bytes"] == (int8_run[0] / "student" / "quantized.pte").stat().st_size
    assert row["details"]["epochs"] == 1
    assert row["params"] == before["models"]["student"]["params"]
    assert (int8_run[0] / "student" / "quantized.pt2").is_file()
    assert "the metrics below are those of `quantized.pte`" in (
        int8_run[0] / "student" / "README.md"
    ).read_text(encoding="utf-8")
    assert (int8_run[0] / "student" / "model.safetensors").is_file()
    assert after["models"]["student"]["sha256"] != before["models"]["student"]["sha256"]
    succeed(
        f"run={int8_run[0]}",
        "out=measured",
        f"stages={sample_run / 'stages'}",
        "limit=2",
        command="kd-evaluate",
    )
    assert results(Path("measured"))["test"]["student"] == after["test"]["student"]


@pytest.mark.slow
def test_a_second_command_reuses_the_stage_and_has_the_same_metrics(
    sample_run: Path, int8_run: tuple[Path, str]
) -> None:
    overrides = ("steps=[quantize]", "quantize.epochs=1", IMAGES)
    succeed(
        f"run={sample_run / 'run'}",
        *overrides,
        "out=again",
        f"stages={sample_run / 'stages'}",
        command="kd-compress",
    )
    again = results(Path("again"))
    assert {stage["status"] for stage in again["stages"]} == {"reused"}
    assert again["test"]["student"] == results(int8_run[0])["test"]["student"]


@pytest.mark.slow
def test_no_step_can_follow_int8(sample_run: Path, int8_run: tuple[Path, str]) -> None:
    error = expect_refusal(
        f"run={int8_run[0]}",
        "steps=[prune]",
        "prune.macs=0.5",
        "out=wrong",
        f"stages={sample_run / 'stages'}",
        command="kd-compress",
    )
    assert "is quantized, and no step can go on from int8" in error
    error = expect_refusal(
        f"run={sample_run / 'run'}",
        "steps=[quantize,prune]",
        "prune.macs=0.5",
        "out=wrong",
        command="kd-compress",
    )
    assert "Put quantize last: 'steps=[prune,quantize]'" in error


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("quantize.epochs=1", "quantize.terms=[soft]"),
            "There is no loss term of the run 'soft'. Did you mean 'soft_target'?",
        ),
        (("quantize.images=0",), "images=0"),
        (("quantize.keep_float=some",), "keep_float='some'"),
    ],
)
def test_a_wrong_request_is_one_paragraph(
    overrides: tuple[str, ...], message: str, sample_run: Path
) -> None:
    assert message in expect_refusal(
        f"run={sample_run / 'run'}",
        "steps=[quantize]",
        *overrides,
        "out=wrong",
        f"stages={sample_run / 'stages'}",
        command="kd-compress",
    )


@pytest.mark.slow
def test_a_quantized_student_is_exported_as_its_program_or_from_its_float_weights(
    sample_run: Path, int8_run: tuple[Path, str], tmp_path: Path
) -> None:
    overrides = (f"run={int8_run[0]}", f"stages={sample_run / 'stages'}", *QUICK)
    out = tmp_path / "export"
    with patch("kd_app.measurement.exported_benchmark.measure_cold_start", lambda *_: {}):
        output = succeed(
            *overrides,
            f"out={out}",
            "formats=[onnx,onnx_int8,executorch,executorch_int8]",
            command="kd-export",
        )
    text = " ".join(output.split())
    assert (
        "model_int8.pte: the int8 program of a quantized student, as kd-compress wrote it" in text
    )
    assert (
        "model.onnx: from the float weights of a quantized student, not from its int8 program"
        in text
    )
    assert "The student is quantized: its metrics in torch are those of its int8 program" in text
    files = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["files"]
    program = int8_run[0] / "student" / "quantized_uint8.pte"
    assert files["model_int8.pte"]["sha256"] == hash_file(program)
    assert files["model_int8.pte"]["input"]["dtype"] == "uint8"
    assert files["model_int8.pte"]["test"]["beside_torch"]["agreement"] > 0.99
    floats = ["model.onnx", "model_int8.onnx", "model.pte"]
    assert list(files) == [*floats, "model_int8.pte"]
    for name in floats:
        assert (
            files[name]["weights"]
            == "from the float weights of a quantized student, not from its int8 program; int8 has"
            " ranges of its own"
        )
        assert files[name]["sha256"] != hash_file(program)
        assert files[name]["test"]["beside_torch"]["agreement"] > 0.5, name
        assert files[name]["latency_ms"]["p50"] > 0
    (tmp_path / "run").mkdir()
    shutil.copytree(
        int8_run[0],
        tmp_path / "run",
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns(program.name),
    )
    moved = (
        f"run={tmp_path / 'run'}",
        f"stages={sample_run / 'stages'}",
        "out=refused",
        "formats=[executorch_int8]",
        *QUICK,
    )
    assert "remake=[quantize] and overwrite=true" in expect_refusal(*moved, command="kd-export")
