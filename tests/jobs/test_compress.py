"""The whole command: a run in, a smaller run out."""

import json
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from PIL import Image

import kd_app
from kd_app.reporting.html import write_report
from kd_app.run import train, workspace
from tests.builders import results
from tests.commands.call import call, done, paragraph, refused
from tests.jobs.conftest import QUICK
from tests.tracking.wandb_files import offline_runs

HALF = ("steps=[prune,finetune]", "prune.macs=0.5", "finetune.max_epochs=1")


def compressed(*words: str) -> str:
    return done(*words, command="kd-compress")


@pytest.fixture(scope="module")
def small(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The made run, compressed, and what the command said."""
    out = tmp_path_factory.mktemp("small") / "run"
    return out, compressed(f"run={made / 'run'}", *HALF, f"out={out}", f"stages={made / 'stages'}")


def test_what_comes_out_is_a_run_with_a_smaller_student_and_the_same_teacher(
    made: Path, small: tuple[Path, str]
) -> None:
    before, after = results(made / "run"), results(small[0])
    assert after["status"] == "finished"
    assert after["models"]["teacher"]["sha256"] == before["models"]["teacher"]["sha256"]
    assert after["models"]["teacher"]["license"] == before["models"]["teacher"]["license"]
    assert after["test"]["teacher"] == before["test"]["teacher"]
    assert after["models"]["student"]["macs"] <= 0.5 * before["models"]["student"]["macs"]
    assert (small[0] / "student" / "model.pt2").is_file()
    assert kd_app.load_run(small[0]).config["compressed"]["prune"]["macs"] == 0.5
    write_report([small[0]], small[0].parent / "page")


def test_the_card_shows_how_to_label_an_image_with_it(
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


def test_the_waterfall_has_each_step_beside_the_one_before(
    made: Path, small: tuple[Path, str]
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
        == results(made / "run")["models"]["student"]["params"]
        > steps[1]["params"]
        == steps[2]["params"]
    )
    assert steps[1]["lost"]["value"] == pytest.approx(
        steps[0]["top1"]["value"] - steps[1]["top1"]["value"]
    )
    assert steps[1]["told"]["target"] == 0.5 >= steps[1]["told"]["kept"]
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


def test_the_alternative_is_a_net_of_the_cost_that_was_reached_trained_on_the_runs_recipe(
    made: Path, small: tuple[Path, str]
) -> None:
    found = results(small[0])
    *_, last, instead = found["steps"]
    assert instead["told"]["instead"]
    assert 1 / 3 < instead["macs"] / last["macs"] < 3
    assert instead["lost"]["value"] == pytest.approx(
        last["top1"]["value"] - instead["top1"]["value"]
    )
    assert 0 <= instead["told"]["test_top1"] <= 1
    (stage,) = [Path(stage["path"]) for stage in found["stages"] if stage["name"] == "alternative"]
    (trained,) = [
        Path(stage["path"])
        for stage in results(made / "run")["stages"]
        if stage["name"] == "student"
    ]
    asked, student = (
        json.loads((folder / "stage.json").read_text())["config"] for folder in (stage, trained)
    )
    assert {key: asked[key] for key in asked if key != "model"} == {
        key: student[key] for key in student if key != "model"
    }


def test_trackers_follow_every_training_and_get_the_figures_of_what_ships(made: Path) -> None:
    words = (
        *HALF,
        "alternative=null",
        "remake=[finetune]",
        "logger=[csv,wandb]",
        "logger.wandb.mode=offline",
        f"stages={made / 'stages'}",
    )
    compressed(f"run={made / 'run'}", *words, "out=followed")
    runs = {stage: found[-1] for stage, found in offline_runs(Path("followed")).items()}
    assert set(runs) == {"finetune", "student"}
    assert {run.exit_code for run in runs.values()} == {0}
    assert any("train/loss" in row for row in runs["finetune"].history)
    assert (
        runs["student"].summary["test.student.top1"]
        == results(Path("followed"))["test"]["student"]["top1"]
    )


def test_the_second_time_every_stage_is_found(made: Path, small: tuple[Path, str]) -> None:
    compressed(f"run={made / 'run'}", *HALF, "out=again", f"stages={made / 'stages'}")
    again = results(Path("again"))
    assert {stage["made"] for stage in again["stages"]} == {"found"}
    assert again["models"]["student"]["sha256"] == results(small[0])["models"]["student"]["sha256"]


def test_a_command_that_was_stopped_goes_on_with_the_step_it_was_at(made: Path) -> None:
    words = (
        f"run={made / 'run'}",
        "steps=[prune,finetune]",
        "prune.params=0.7",
        "finetune.max_epochs=1",
        "out=stopped",
        f"stages={made / 'stages'}",
    )
    with patch.object(train, "fit", side_effect=KeyboardInterrupt):
        assert call(*words, command="kd-compress").code == 130
    compressed(*words)
    made_or_found = {stage["name"]: stage["made"] for stage in results(Path("stopped"))["stages"]}
    assert made_or_found["prune"] == "found"
    assert made_or_found["finetune"] == "made"


def test_it_goes_on_to_evaluation_and_to_a_second_compression(
    made: Path, small: tuple[Path, str]
) -> None:
    done(
        f"run={small[0]}",
        "out=measured",
        f"stages={made / 'stages'}",
        "limit=2",
        command="kd-evaluate",
    )
    assert results(Path("measured"))["test"] == results(small[0])["test"]
    compressed(
        f"run={small[0]}",
        "steps=[prune]",
        "prune.macs=0.7",
        "prune.round_to=4",
        "out=smaller",
        f"stages={made / 'stages'}",
    )
    assert (
        results(Path("smaller"))["models"]["student"]["macs"]
        <= 0.7 * results(small[0])["models"]["student"]["macs"]
    )


def test_a_pruned_student_is_exported_with_the_widths_that_it_has(
    made: Path, small: tuple[Path, str]
) -> None:
    words = (f"run={small[0]}", f"stages={made / 'stages'}", "out=export", "formats=[onnx]", *QUICK)
    with patch("kd_app.run.exported_benchmark.measure_cold_start", lambda *_: {}):
        done(*words, command="kd-export")
    file = json.loads(Path("export/manifest.json").read_text(encoding="utf-8"))["files"][
        "model.onnx"
    ]
    assert file["test"]["top1"] == results(small[0])["test"]["student"]["top1"]
    assert file["largest_difference"] < 1e-3
    assert "weights" not in file


@pytest.mark.slow
def test_a_pruned_student_is_exported_in_int8_for_both_runtimes(
    made: Path, small: tuple[Path, str]
) -> None:
    words = (
        f"run={small[0]}",
        f"stages={made / 'stages'}",
        "out=export",
        "formats=[onnx_int8,executorch_int8]",
        *QUICK,
    )
    with patch("kd_app.run.exported_benchmark.measure_cold_start", lambda *_: {}):
        done(*words, command="kd-export")
    files = json.loads(Path("export/manifest.json").read_text(encoding="utf-8"))["files"]
    assert list(files) == ["model_int8.onnx", "model_int8.pte"]
    for name, file in files.items():
        assert file["calibration_images"] == 8
        assert file["test"]["beside_torch"]["agreement"] > 0.5, name
        assert file["latency_ms"]["p50"] > 0
        assert "weights" not in file


def test_a_step_that_loses_too_much_stops_and_the_step_before_is_kept(made: Path) -> None:
    answers = workspace.Workspace.load_predictions

    def spoiled(self: workspace.Workspace, member: workspace.RunModel, split: str) -> object:
        found = answers(self, member, split)
        if member.folder and (member.folder / "prune.json").is_file():
            found.logits[:] = -torch.nn.functional.one_hot(
                torch.from_numpy(found.target), found.logits.shape[1]
            ).numpy()
        return found

    words = (
        f"run={made / 'run'}",
        "steps=[prune]",
        "prune.macs=0.5",
        "max_loss=0.0",
        "out=lost",
        f"stages={made / 'stages'}",
    )
    with patch.object(workspace.Workspace, "load_predictions", spoiled):
        ended = call(*words, command="kd-compress")
    assert ended.code == 1
    assert "The step prune lost" in paragraph(ended.err)
    found = results(Path("lost"))
    assert found["status"] == "failed"
    assert (
        found["models"]["student"]["sha256"] == results(made / "run")["models"]["student"]["sha256"]
    )
    assert Path("lost/student/model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("importance", ["taylor", "distillation"])
def test_importance_by_the_loss_of_the_labels_or_of_the_run(importance: str, made: Path) -> None:
    words = (
        "steps=[prune]",
        "prune.macs=0.6",
        f"prune.importance={importance}",
        "prune.images=16",
        "prune.iterations=2",
    )
    compressed(f"run={made / 'run'}", *words, f"out={importance}", f"stages={made / 'stages'}")
    assert results(Path(importance))["steps"][1]["told"]["importance"] == importance


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("steps=[prun]", "prune.macs=0.5"), "There is no step 'prun'. Did you mean 'prune'?"),
        (("steps=[prune]",), "exactly one share"),
        (("steps=[prune]", "prune.macs=2"), "macs=2"),
        (("steps=[prune]", "prune.macs=0.0001"), "Reachable"),
        (("steps=[prune]", "prune.macs=0.5", "max_loss=5"), "max_loss=5"),
    ],
)
def test_a_wrong_request_is_one_paragraph_and_leaves_nothing(
    words: tuple[str, ...], said: str, made: Path
) -> None:
    assert said in refused(
        f"run={made / 'run'}",
        *words,
        "out=wrong",
        f"stages={made / 'stages'}",
        command="kd-compress",
    )


def test_a_model_that_the_run_has_not_is_refused_with_those_that_it_has(made: Path) -> None:
    said = refused(
        f"run={made / 'run'}",
        "role=labels",
        *HALF,
        "out=wrong",
        f"stages={made / 'stages'}",
        command="kd-compress",
    )
    assert "There is no model to compress in" in said
    assert "Did you mean 'labels_only'?" in said
    assert "There is no model" in refused(
        f"run={made / 'run'}", "role=teacher", *HALF, "out=wrong", command="kd-compress"
    )


@pytest.mark.slow
def test_pruned_and_quantized_in_one_command_or_in_two_is_the_same_student(
    made: Path, small: tuple[Path, str]
) -> None:
    words = (f"stages={made / 'stages'}", "quantize.images=16", "alternative=null")
    compressed(
        f"run={made / 'run'}", "steps=[prune,finetune,quantize]", *HALF[1:], *words, "out=one"
    )
    compressed(f"run={small[0]}", "steps=[quantize]", *words, "out=two")
    one, two = results(Path("one")), results(Path("two"))
    assert [step["name"] for step in one["steps"]] == ["start", "prune", "finetune", "quantize"]
    assert {stage["name"]: stage["made"] for stage in two["stages"]}["quantize"] == "found"
    assert one["models"]["student"]["sha256"] == two["models"]["student"]["sha256"]
    assert one["models"]["student"]["params"] == results(small[0])["models"]["student"]["params"]
    assert (
        one["models"]["student"]["size_bytes"]
        == (Path("one") / "student" / "quantized.pte").stat().st_size
    )
    assert one["test"]["student"] == two["test"]["student"]


@pytest.mark.slow
def test_distilled_or_not_and_quantized_after_training_or_in_it_is_one_command_with_one_page(
    made: Path,
) -> None:
    said = compressed(
        "-m",
        "comparison=quantization",
        f"run={made / 'run'}",
        "quantize.images=16",
        "out=int8",
        f"stages={made / 'stages'}",
    )
    trials = {number: results(Path(f"int8/{number}")) for number in range(4)}
    told = [
        (found["config"]["compressed"]["role"], found["steps"][-1]["told"]["epochs"])
        for found in trials.values()
    ]
    assert told == [("student", 0), ("student", 2), ("labels_only", 0), ("labels_only", 2)]
    assert all(found["test"]["student"]["top1"] is not None for found in trials.values())
    assert (
        trials[2]["steps"][0]["top1"]["value"]
        == results(made / "run")["validation"]["labels_only"]["top1"]
    )
    flat = " ".join(said.split())
    assert flat.count("About two models, not two methods") == 3
    assert "minus that of compressed.role=student, compressed.quantize.epochs=0" in flat
    assert (Path("int8/report") / "report.html").is_file()
