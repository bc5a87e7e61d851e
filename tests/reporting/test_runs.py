"""Run folders are read back: results, tables, models."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from scipy.special import softmax

from kd_app.config import InputSpec, RequestError
from kd_app.digest import hash_file
from kd_app.models.save import save_model
from kd_app.reporting.results import FileRecord, read, write
from kd_app.reporting.runs import load_run, load_runs, write_curves, write_predictions
from tests.reporting.run_folders import THREE, build_results, draw_logits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    logits, target = draw_logits(THREE)
    write(tmp_path / "results.json", build_results())
    names = [f"digits/{k:04}" for k in range(300)]
    write_predictions(
        tmp_path / "predictions.parquet",
        index=np.arange(300) + 7,
        file=names,
        target=target,
        logits=logits,
    )
    teacher = [
        {"epoch": 0.0, "step": 10.0, "loss": 2.5},
        {"epoch": 0.0, "step": 10.0, "validation/top1": 0.25},
    ]
    write_curves(
        tmp_path / "metrics.csv",
        {"teacher": teacher, "student": [{"step": 10.0, "loss": 3.0, "soft_target": 1.0}]},
    )
    return tmp_path


def test_a_run_has_results_and_configuration(folder: Path) -> None:
    run = load_run(folder)
    assert run.results == build_results()
    assert run.config["loss"]["soft_target"]["temperature"] == 4
    assert load_run(str(folder)).path == folder


def test_predictions_have_a_row_per_image_and_columns_per_model(folder: Path) -> None:
    table, (logits, target) = load_run(folder).predictions, draw_logits(THREE)
    columns = [
        f"{model}_{name}"
        for model in THREE
        for name in ("top1", "top1_probability", "target_probability")
    ]
    assert list(table.columns) == ["index", "file", "target", *columns]
    assert table["index"].tolist() == list(range(7, 307))
    assert table["file"][12] == "digits/0012"
    p = softmax(logits["student"].astype(np.float64), axis=1)
    np.testing.assert_array_equal(table["student_top1"], p.argmax(axis=1))
    np.testing.assert_allclose(table["student_top1_probability"], p.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(
        table["student_target_probability"], p[np.arange(300), target], rtol=1e-4
    )


def test_results_and_predictions_have_the_same_accuracy(folder: Path) -> None:
    run = load_run(folder)
    assert run.results.test is not None
    assert run.results.test.student.top1 == pytest.approx(
        (run.predictions["student_top1"] == run.predictions["target"]).mean()
    )


def test_predictions_do_not_depend_on_the_block_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_run(folder).predictions
    monkeypatch.setattr("kd_app.metrics.blocks.VALUES", 70)
    logits, target = draw_logits(THREE)
    write_predictions(
        folder / "predictions.parquet",
        index=np.arange(300) + 7,
        file=list(whole["file"]),
        target=target,
        logits=logits,
    )
    assert load_run(folder).predictions.equals(whole)
    assert [path.name for path in folder.iterdir() if "partial" in path.name] == []


def test_curves_of_all_stages_are_one_table(folder: Path) -> None:
    curves = load_run(folder).curves
    assert list(curves.columns) == [
        "stage",
        "epoch",
        "step",
        "loss",
        "soft_target",
        "validation/top1",
    ]
    assert curves["stage"].tolist() == ["teacher", "teacher", "student"]
    assert curves["loss"].tolist() == pytest.approx([2.5, np.nan, 3.0], nan_ok=True)
    assert curves["validation/top1"][1] == 0.25


def test_a_missing_file_is_reported_with_the_status(tmp_path: Path) -> None:
    write(tmp_path / "results.json", build_results(status="running"))
    run = load_run(tmp_path)
    for access in (lambda: run.predictions, lambda: run.curves, run.load_student, run.load_teacher):
        with pytest.raises(RequestError, match="its status is 'running'"):
            access()


def test_the_student_is_the_exported_model(tmp_path: Path) -> None:
    write(tmp_path / "results.json", build_results())
    pixels = InputSpec(channels=3, height=32, width=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    exported = timm.create_model("test_resnet", num_classes=10).eval()
    save_model(
        exported,
        tmp_path / "student",
        pixels=pixels,
        classes=[f"c{k}" for k in range(10)],
        license="apache-2.0",
    )
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load_run(tmp_path).load_student()(image), exported(image))


@pytest.fixture
def distillation(tmp_path: Path) -> Path:
    """A run whose teacher is in a stage."""
    stage, run = tmp_path / ".stages" / "teacher-12", tmp_path / "run"
    pixels = InputSpec(channels=3, height=32, width=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    (run / "teacher").mkdir(parents=True)
    save_model(
        timm.create_model("test_resnet", num_classes=10),
        stage / "model",
        pixels=pixels,
        classes=list("abcdefghij"),
        license="apache-2.0",
    )
    write(run / "results.json", build_results())
    write_reference(
        run, path=str(stage / "model"), sha256=hash_file(stage / "model" / "model.safetensors")
    )
    return run


def write_reference(
    run: Path, *, path: str | None, sha256: str = "ab", source: str = "folder model"
) -> None:
    reference = {
        "name": "test_resnet",
        "source": source,
        "sha256": sha256,
        "stage": None,
        "path": path,
    }
    (run / "teacher" / "reference.json").write_text(json.dumps(reference))


def test_the_teacher_is_the_model_of_the_stage(distillation: Path) -> None:
    teacher = load_run(distillation).load_teacher()
    tensors = load_file(
        distillation.parent / ".stages" / "teacher-12" / "model" / "model.safetensors"
    )
    assert not teacher.training
    assert teacher.state_dict().keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("name", ["metrics.csv", "predictions.parquet", "teacher/reference.json"])
def test_a_file_that_is_not_as_the_run_wrote_it_is_rejected(distillation: Path, name: str) -> None:
    results = read(distillation / "results.json")
    results.files = [FileRecord(name=name, sha256="ab")]
    write(distillation / "results.json", results)
    (distillation / name).touch()
    with pytest.raises(RequestError, match=rf"{name}' has changed since the run wrote it"):
        load_run(distillation).find_file(name)


def test_a_teacher_with_other_weights_is_rejected(distillation: Path) -> None:
    weights = distillation.parent / ".stages" / "teacher-12" / "model" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(RequestError, match="holds other weights now"):
        load_run(distillation).load_teacher()


def test_a_missing_stage_is_named(distillation: Path) -> None:
    shutil.rmtree(distillation.parent / ".stages")
    with pytest.raises(RequestError, match=r"teacher-12/model', which does not exist"):
        load_run(distillation).load_teacher()


@pytest.mark.parametrize(
    ("path", "source"), [(None, "hub test_resnet.r160_in1k"), ("weights.pth", "file weights.pth")]
)
def test_a_teacher_without_a_folder_is_rejected_with_its_source(
    distillation: Path, path: str | None, source: str
) -> None:
    (distillation.parent / "weights.pth").touch()
    write_reference(distillation, path=path and str(distillation.parent / path), source=source)
    with pytest.raises(RequestError, match=f"test_resnet came from {source}"):
        load_run(distillation).load_teacher()


def test_a_run_on_labels_only_has_no_teacher(tmp_path: Path) -> None:
    write(tmp_path / "results.json", build_results({"student": 2.0}))
    with pytest.raises(RequestError, match="has no teacher: its student learned from labels only"):
        load_run(tmp_path).load_teacher()


def test_nested_runs_have_a_row_each_and_stages_are_skipped(folder: Path) -> None:
    for place in ("sweep/1", "sweep/0", ".stages/student-12", "sweep/.partial"):
        (folder / place).mkdir(parents=True)
        shutil.copy(folder / "results.json", folder / place)
    runs = load_runs(folder)
    assert runs["path"].tolist() == [str(folder), str(folder / "sweep/0"), str(folder / "sweep/1")]
    assert runs["status"].tolist() == ["finished"] * 3
    assert runs["test.student.top1"][0] == pytest.approx(0.51333, abs=1e-5)
    assert runs["config.loss.soft_target.temperature"].tolist() == [4.0] * 3
    assert runs["models.student.params"][0] == 2_542_856
    assert runs["verdict.outcome"][0] == "lost"


def test_a_corrupt_run_is_listed_with_the_reason(folder: Path) -> None:
    (folder / "cut").mkdir()
    (folder / "cut" / "results.json").write_text((folder / "results.json").read_text()[:500])
    runs = load_runs(folder).set_index("path")
    assert runs["status"].to_dict() == {str(folder): "finished", str(folder / "cut"): "unreadable"}
    assert "truncated" in str(runs["reason"][str(folder / "cut")])


def test_a_folder_without_runs_has_an_empty_table_and_a_missing_folder_is_rejected(
    tmp_path: Path,
) -> None:
    assert load_runs(tmp_path).empty
    with pytest.raises(RequestError, match="There is no folder"):
        load_runs(tmp_path / "none")
    with pytest.raises(RequestError, match="There is no"):
        load_run(tmp_path)


def test_heavy_packages_are_imported_only_when_needed() -> None:
    code = (
        "import sys, kd_app.reporting.runs, kd_app.reporting.tables; print({'torch', 'pandas',"
        " 'timm', 'scipy'} & set(sys.modules))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout == "set()\n"
