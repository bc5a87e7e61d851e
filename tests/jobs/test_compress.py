"""kd-compress turns a run into a run with a smaller student."""

import json
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, patch

import pytest
import torch
from PIL import Image

import kd_app
from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.jobs.compress import Compression, check_order, compute_loss, select_recorded
from kd_app.reporting.html import write_report
from kd_app.run import train, workspace
from kd_app.run.model import RunModel
from kd_app.training import fit
from tests.builders import results
from tests.commands.call import call, expect_refusal, paragraph, succeed
from tests.jobs.conftest import QUICK
from tests.tracking.wandb_files import offline_runs

HALF = (
    "steps=[prune,finetune]",
    "prune.macs=0.5",
    "finetune.max_epochs=1",
    "candidates=[{name:resnet8,kwargs:{widths:[8,8,16,32]}},{name:resnet8,kwargs:{stem_stride:2}}]",
)


def compress(*overrides: str) -> str:
    return succeed(*overrides, command="kd-compress")


@pytest.fixture(scope="module")
def small(sample_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The finished run, compressed, and the output."""
    out = tmp_path_factory.mktemp("small") / "run"
    tracked = ("logger=[csv,wandb]", "logger.wandb.mode=offline")
    overrides = (*HALF, *tracked, f"out={out}", f"stages={sample_run / 'stages'}")
    return out, compress(f"run={sample_run / 'run'}", *overrides)


def test_the_result_is_a_run_with_a_smaller_student_and_the_same_teacher(
    sample_run: Path, small: tuple[Path, str]
) -> None:
    before, after = results(sample_run / "run"), results(small[0])
    assert after["status"] == "finished"
    assert after["models"]["teacher"]["sha256"] == before["models"]["teacher"]["sha256"]
    assert after["models"]["teacher"]["license"] == before["models"]["teacher"]["license"]
    assert after["test"]["teacher"] == before["test"]["teacher"]
    assert after["models"]["student"]["macs"] <= 0.5 * before["models"]["student"]["macs"]
    assert (small[0] / "student" / "model.pt2").is_file()
    assert kd_app.load_run(small[0]).config["compressed"]["prune"]["macs"] == 0.5
    write_report([small[0]], small[0].parent / "page")


def test_the_code_in_the_model_card_labels_an_image(
    small: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (8, 8), 7).save(small[0] / "image.png")
    monkeypatch.chdir(small[0])
    exec(
        (small[0] / "student" / "README.md")
        .read_text(encoding="utf-8")
        .split("```python\n")[1]
        .split("```")[0],
        {},
    )
    label, share = capsys.readouterr().out.split()
    assert label in "0123456789"
    assert share.endswith("%")


def test_the_waterfall_compares_each_step_with_the_one_before(
    sample_run: Path, small: tuple[Path, str]
) -> None:
    steps = results(small[0])["steps"]
    assert [step["name"] for step in steps] == [
        "start",
        "prune",
        "finetune",
        f"alternative: {steps[-1]['name'].split()[1]}",
    ]
    assert steps[0]["lost"] is None
    assert (
        steps[0]["params"]
        == results(sample_run / "run")["models"]["student"]["params"]
        > steps[1]["params"]
        == steps[2]["params"]
    )
    assert steps[1]["lost"]["value"] == pytest.approx(
        steps[0]["top1"]["value"] - steps[1]["top1"]["value"]
    )
    assert steps[1]["details"]["target"] == 0.5 >= steps[1]["details"]["kept"]
    assert "multiply-adds" in small[1]
    assert "latency" in small[1]
    assert [step["latency_ms"] for step in steps] == [2.0] * 4
    page = (
        (small[0] / "report.md")
        .read_text(encoding="utf-8")
        .split("## Step by step")[1]
        .split("## ")[0]
    )
    for step in steps:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {step['name']} |")]
        assert (
            f"{100 * step['top1']['value']:.2f} % ({100 * step['top1']['low']:.2f} to"
            f" {100 * step['top1']['high']:.2f})" in row
        )


def test_the_alternative_has_the_cost_of_the_student_and_the_recipe_of_the_run(
    sample_run: Path, small: tuple[Path, str]
) -> None:
    compressed_run = results(small[0])
    *_, last, instead = compressed_run["steps"]
    assert instead["details"]["instead"]
    assert 1 / 3 < instead["macs"] / last["macs"] < 3
    assert instead["lost"]["value"] == pytest.approx(
        last["top1"]["value"] - instead["top1"]["value"]
    )
    assert 0 <= instead["details"]["test_top1"] <= 1
    (stage,) = [
        Path(stage["path"]) for stage in compressed_run["stages"] if stage["name"] == "alternative"
    ]
    (trained,) = [
        Path(stage["path"])
        for stage in results(sample_run / "run")["stages"]
        if stage["name"] == "student"
    ]
    alternative, student = (
        json.loads((folder / "stage.json").read_text())["config"] for folder in (stage, trained)
    )
    assert {key: alternative[key] for key in alternative if key != "model"} == {
        key: student[key] for key in student if key != "model"
    }


def test_trackers_log_every_training_and_the_metrics_of_the_shipped_student(
    small: tuple[Path, str],
) -> None:
    runs = {stage: each[-1] for stage, each in offline_runs(small[0]).items()}
    assert set(runs) == {"finetune", "alternative", "student"}
    assert {run.exit_code for run in runs.values()} == {0}
    for stage in ("finetune", "alternative"):
        assert any("train/loss" in row for row in runs[stage].history)
    assert (
        runs["student"].summary["test.student.top1"] == results(small[0])["test"]["student"]["top1"]
    )


@pytest.mark.slow  # what decides about reuse: the record, tested below
def test_a_second_command_reuses_every_stage(sample_run: Path, small: tuple[Path, str]) -> None:
    compress(f"run={sample_run / 'run'}", *HALF, "out=again", f"stages={sample_run / 'stages'}")
    again = results(Path("again"))
    assert {stage["status"] for stage in again["stages"]} == {"reused"}
    assert again["models"]["student"]["sha256"] == results(small[0])["models"]["student"]["sha256"]


@pytest.mark.slow
def test_an_interrupted_command_resumes_at_the_same_step(sample_run: Path) -> None:
    overrides = (
        f"run={sample_run / 'run'}",
        "steps=[prune,finetune]",
        "prune.params=0.7",
        "finetune.max_epochs=1",
        "out=stopped",
        f"stages={sample_run / 'stages'}",
    )
    with patch.object(train, "fit", side_effect=KeyboardInterrupt):
        assert call(*overrides, command="kd-compress").code == 130
    compress(*overrides)
    origins = {stage["name"]: stage["status"] for stage in results(Path("stopped"))["stages"]}
    assert (origins["prune"], origins["finetune"]) == ("reused", "computed")


@pytest.mark.slow
def test_a_compressed_run_can_be_evaluated_and_compressed_again(
    sample_run: Path, small: tuple[Path, str]
) -> None:
    succeed(
        f"run={small[0]}",
        "out=measured",
        f"stages={sample_run / 'stages'}",
        "limit=2",
        command="kd-evaluate",
    )
    assert results(Path("measured"))["test"] == results(small[0])["test"]
    compress(
        f"run={small[0]}",
        "steps=[prune]",
        "prune.macs=0.7",
        "prune.round_to=4",
        "out=smaller",
        f"stages={sample_run / 'stages'}",
    )
    assert (
        results(Path("smaller"))["models"]["student"]["macs"]
        <= 0.7 * results(small[0])["models"]["student"]["macs"]
    )


@pytest.mark.slow
def test_a_pruned_student_is_exported_with_its_own_widths(
    sample_run: Path, small: tuple[Path, str]
) -> None:
    overrides = (
        f"run={small[0]}",
        f"stages={sample_run / 'stages'}",
        "out=export",
        "formats=[onnx]",
        *QUICK,
    )
    with patch("kd_app.measurement.exported_benchmark.measure_cold_start", lambda *_: {}):
        succeed(*overrides, command="kd-export")
    file = json.loads(Path("export/manifest.json").read_text(encoding="utf-8"))["files"][
        "model.onnx"
    ]
    assert file["test"]["top1"] == results(small[0])["test"]["student"]["top1"]
    assert file["largest_difference"] < 1e-3
    assert "weights" not in file


@pytest.mark.slow
def test_a_pruned_student_is_exported_in_int8_for_both_runtimes(
    sample_run: Path, small: tuple[Path, str]
) -> None:
    overrides = (
        f"run={small[0]}",
        f"stages={sample_run / 'stages'}",
        "out=export",
        "formats=[onnx_int8,executorch_int8]",
        *QUICK,
    )
    with patch("kd_app.measurement.exported_benchmark.measure_cold_start", lambda *_: {}):
        succeed(*overrides, command="kd-export")
    files = json.loads(Path("export/manifest.json").read_text(encoding="utf-8"))["files"]
    assert list(files) == ["model_int8.onnx", "model_int8.pte"]
    for name, file in files.items():
        assert file["calibration_images"] == 8
        assert file["test"]["beside_torch"]["agreement"] > 0.5, name
        assert file["latency_ms"]["p50"] > 0
        assert "weights" not in file


def test_a_step_that_loses_too_much_stops_the_command_and_the_student_before_is_kept(
    sample_run: Path,
) -> None:
    load = workspace.Workspace.load_predictions

    def load_spoiled(self: workspace.Workspace, model: RunModel, split: str) -> object:
        predictions = load(self, model, split)
        if model.folder and (model.folder / "prune.json").is_file():
            target = torch.from_numpy(predictions.target)
            one_hot = torch.nn.functional.one_hot(target, predictions.logits.shape[1])
            predictions.logits[:] = -one_hot.numpy()
        return predictions

    overrides = (
        f"run={sample_run / 'run'}",
        "steps=[prune]",
        "prune.macs=0.5",
        "max_loss=0.0",
        "out=lost",
        f"stages={sample_run / 'stages'}",
    )
    with patch.object(workspace.Workspace, "load_predictions", load_spoiled):
        result = call(*overrides, command="kd-compress")
    assert result.code == 1
    assert "The step prune lost" in paragraph(result.err)
    failed = results(Path("lost"))
    assert failed["status"] == "failed"
    assert (
        failed["models"]["student"]["sha256"]
        == results(sample_run / "run")["models"]["student"]["sha256"]
    )
    assert Path("lost/student/model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("importance", ["taylor", "distillation"])
def test_importance_by_the_gradients_of_the_labels_or_of_the_run(
    importance: str, sample_run: Path
) -> None:
    overrides = (
        "steps=[prune]",
        "prune.macs=0.6",
        f"prune.importance={importance}",
        "prune.images=16",
        "prune.iterations=2",
    )
    folders = f"run={sample_run / 'run'}", f"out={importance}", f"stages={sample_run / 'stages'}"
    with patch("kd_app.compression.prune.build", Mock(wraps=fit.build)) as build:
        compress(*folders, *overrides)
    # in channels_last, oneDNN writes past the gradients of narrow layers
    assert not any(call.args[3].channels_last for call in build.call_args_list)
    assert results(Path(importance))["steps"][1]["details"]["importance"] == importance


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("steps=[prun]", "prune.macs=0.5"), "There is no step 'prun'. Did you mean 'prune'?"),
        (("steps=[prune]",), "exactly one share"),
        (("steps=[prune]", "prune.macs=2"), "macs=2"),
        (("steps=[prune]", "prune.macs=0.0001"), "Reachable"),
        (("steps=[prune]", "prune.macs=0.5", "max_loss=5"), "max_loss=5"),
    ],
)
def test_a_wrong_request_is_one_paragraph_and_leaves_nothing(
    overrides: tuple[str, ...], message: str, sample_run: Path
) -> None:
    assert message in expect_refusal(
        f"run={sample_run / 'run'}",
        *overrides,
        "out=wrong",
        f"stages={sample_run / 'stages'}",
        command="kd-compress",
    )


def test_an_unknown_model_is_refused_with_the_closest_name(sample_run: Path) -> None:
    error = expect_refusal(
        f"run={sample_run / 'run'}",
        "role=labels",
        *HALF,
        "out=wrong",
        f"stages={sample_run / 'stages'}",
        command="kd-compress",
    )
    assert "There is no model to compress in" in error
    assert "Did you mean 'labels_only'?" in error
    assert "There is no model" in expect_refusal(
        f"run={sample_run / 'run'}", "role=teacher", *HALF, "out=wrong", command="kd-compress"
    )


@pytest.mark.slow
def test_one_command_or_two_give_the_same_pruned_and_quantized_student(
    sample_run: Path, small: tuple[Path, str]
) -> None:
    overrides = (f"stages={sample_run / 'stages'}", "quantize.images=16", "alternative=null")
    compress(
        f"run={sample_run / 'run'}",
        "steps=[prune,finetune,quantize]",
        *HALF[1:],
        *overrides,
        "out=one",
    )
    compress(f"run={small[0]}", "steps=[quantize]", *overrides, "out=two")
    one, two = results(Path("one")), results(Path("two"))
    assert [step["name"] for step in one["steps"]] == ["start", "prune", "finetune", "quantize"]
    assert {stage["name"]: stage["status"] for stage in two["stages"]}["quantize"] == "reused"
    assert one["models"]["student"]["sha256"] == two["models"]["student"]["sha256"]
    assert one["models"]["student"]["params"] == results(small[0])["models"]["student"]["params"]
    assert (
        one["models"]["student"]["size_bytes"]
        == (Path("one") / "student" / "quantized.pte").stat().st_size
    )
    assert one["test"]["student"] == two["test"]["student"]


@pytest.mark.slow
def test_the_comparison_of_quantizations_is_one_sweep_with_one_page(
    sample_run: Path,
) -> None:
    output = compress(
        "-m",
        "comparison=quantization",
        f"run={sample_run / 'run'}",
        "quantize.images=16",
        "out=int8",
        f"stages={sample_run / 'stages'}",
    )
    trials = {number: results(Path(f"int8/{number}")) for number in range(4)}
    pairs = [
        (trial["config"]["compressed"]["role"], trial["steps"][-1]["details"]["epochs"])
        for trial in trials.values()
    ]
    assert pairs == [("student", 0), ("student", 2), ("labels_only", 0), ("labels_only", 2)]
    assert all(trial["test"]["student"]["top1"] is not None for trial in trials.values())
    assert (
        trials[2]["steps"][0]["top1"]["value"]
        == results(sample_run / "run")["validation"]["labels_only"]["top1"]
    )
    flat = " ".join(output.split())
    assert flat.count("About two models, not two methods") == 3
    assert "minus that of compressed.role=student, compressed.quantize.epochs=0" in flat
    assert (Path("int8/report") / "report.html").is_file()


def test_the_record_has_only_settings_that_determine_the_student() -> None:
    config = compose_config("compress", ["run=run", "steps=[prune]", "prune.macs=0.5"])
    recorded = select_recorded(config, Compression(**config))
    assert recorded["prune"]["macs"] == 0.5
    assert not recorded.keys() & {"finetune", "quantize", "out", "stages", "logger", "tags"}
    assert {"role", "steps", "max_loss"} <= recorded.keys()


def test_a_step_after_quantize_is_refused_with_the_right_order() -> None:
    steps = [(name, SimpleNamespace(is_final=name == "quantize")) for name in ("quantize", "prune")]
    with pytest.raises(RequestError, match=r"Put quantize last: 'steps=\[prune,quantize\]'"):
        check_order(steps)  # type: ignore[arg-type]


def test_the_loss_is_minus_the_difference() -> None:
    judgment = SimpleNamespace(difference=-0.02, low=-0.03, high=-0.01)
    loss = compute_loss(judgment)  # type: ignore[arg-type]
    assert (loss.value, loss.low, loss.high) == (0.02, 0.01, 0.03)
