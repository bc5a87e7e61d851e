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
from kd_app.models.save import save_model
from kd_app.reporting.results import write
from kd_app.reporting.runs import load_run, load_runs, write_curves, write_predictions
from kd_app.stages import hash_file
from tests.reporting.run_folders import THREE, logits_and_target, made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    logits, target = logits_and_target(THREE)
    write(tmp_path / "results.json", made())
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


def test_a_run_gives_its_results_and_configuration(folder: Path) -> None:
    run = load_run(folder)
    assert run.results == made()
    assert run.config["loss"]["soft_target"]["temperature"] == 4
    assert load_run(str(folder)).path == folder


def test_predictions_name_each_image_and_what_each_model_said_of_it(folder: Path) -> None:
    table, (logits, target) = load_run(folder).predictions, logits_and_target(THREE)
    answers = [
        f"{model}_{name}"
        for model in THREE
        for name in ("top1", "top1_probability", "target_probability")
    ]
    assert list(table.columns) == ["index", "file", "target", *answers]
    assert table["index"].tolist() == list(range(7, 307))
    assert table["file"][12] == "digits/0012"
    p = softmax(logits["student"].astype(np.float64), axis=1)
    np.testing.assert_array_equal(table["student_top1"], p.argmax(axis=1))
    np.testing.assert_allclose(table["student_top1_probability"], p.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(
        table["student_target_probability"], p[np.arange(300), target], rtol=1e-4
    )


def test_the_accuracy_in_the_results_is_that_of_the_predictions(folder: Path) -> None:
    run = load_run(folder)
    assert run.results.test is not None
    assert run.results.test.student.top1 == pytest.approx(
        (run.predictions["student_top1"] == run.predictions["target"]).mean()
    )


def test_predictions_are_the_same_however_many_rows_are_taken_at_a_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_run(folder).predictions
    monkeypatch.setattr("kd_app.reporting.predictions._VALUES", 70)
    logits, target = logits_and_target(THREE)
    write_predictions(
        folder / "predictions.parquet",
        index=np.arange(300) + 7,
        file=list(whole["file"]),
        target=target,
        logits=logits,
    )
    assert load_run(folder).predictions.equals(whole)
    assert [path.name for path in folder.iterdir() if "partial" in path.name] == []


def test_curves_of_all_stages_are_one_table_empty_where_nothing_was_logged(folder: Path) -> None:
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


def test_what_a_run_has_not_is_said_with_its_status(tmp_path: Path) -> None:
    write(tmp_path / "results.json", made(status="running"))
    run = load_run(tmp_path)
    for read in (lambda: run.predictions, lambda: run.curves, run.load_student, run.load_teacher):
        with pytest.raises(RequestError, match="its status is 'running'"):
            read()


def test_the_student_is_the_one_that_was_shipped(tmp_path: Path) -> None:
    write(tmp_path / "results.json", made())
    pixels = InputSpec(channels=3, height=32, width=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    shipped = timm.create_model("test_resnet", num_classes=10).eval()
    save_model(
        shipped,
        tmp_path / "student",
        pixels=pixels,
        classes=[f"c{k}" for k in range(10)],
        license="apache-2.0",
    )
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load_run(tmp_path).load_student()(image), shipped(image))


def test_a_fresh_process_loads_a_student_of_the_small_nets(tmp_path: Path) -> None:
    import kd_app.models.small  # noqa: F401

    write(tmp_path / "results.json", made())
    pixels = InputSpec(channels=1, height=8, width=8, mean=(0.5,), std=(0.5,))
    shipped = timm.create_model("resnet8", num_classes=10, in_chans=1)
    save_model(
        shipped,
        tmp_path / "student",
        pixels=pixels,
        classes=list("abcdefghij"),
        license="apache-2.0",
    )
    code = f"import kd_app; print(kd_app.load_run({str(tmp_path)!r}).load_student().num_classes)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "10\n"


@pytest.fixture
def taught(tmp_path: Path) -> Path:
    """A run whose teacher was kept in a stage."""
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
    write(run / "results.json", made())
    told(run, path=str(stage / "model"), sha256=hash_file(stage / "model" / "model.safetensors"))
    return run


def told(run: Path, *, path: str | None, sha256: str = "ab", source: str = "folder model") -> None:
    reference = {
        "name": "test_resnet",
        "source": source,
        "sha256": sha256,
        "stage": None,
        "path": path,
    }
    (run / "teacher" / "reference.json").write_text(json.dumps(reference))


def test_the_teacher_is_the_one_that_the_stage_kept(taught: Path) -> None:
    teacher = load_run(taught).load_teacher()
    kept = load_file(taught.parent / ".stages" / "teacher-12" / "model" / "model.safetensors")
    assert not teacher.training
    assert teacher.state_dict().keys() == kept.keys()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in teacher.state_dict().items())


def test_a_teacher_that_was_trained_anew_since_is_not_taken_for_the_runs_own(taught: Path) -> None:
    weights = taught.parent / ".stages" / "teacher-12" / "model" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(RequestError, match="holds other weights now"):
        load_run(taught).load_teacher()


def test_a_teacher_whose_stage_is_gone_is_told_with_its_place(taught: Path) -> None:
    shutil.rmtree(taught.parent / ".stages")
    with pytest.raises(RequestError, match=r"teacher-12/model', which is not there"):
        load_run(taught).load_teacher()


@pytest.mark.parametrize(
    ("path", "source"), [(None, "hub test_resnet.r160_in1k"), ("weights.pth", "file weights.pth")]
)
def test_a_teacher_that_came_by_name_or_from_a_file_is_told_with_its_source(
    taught: Path, path: str | None, source: str
) -> None:
    (taught.parent / "weights.pth").touch()
    told(taught, path=path and str(taught.parent / path), source=source)
    with pytest.raises(RequestError, match=f"test_resnet came from {source}"):
        load_run(taught).load_teacher()


def test_a_run_on_labels_alone_has_no_teacher(tmp_path: Path) -> None:
    write(tmp_path / "results.json", made({"student": 2.0}))
    with pytest.raises(RequestError, match="has no teacher: it was trained on the labels alone"):
        load_run(tmp_path).load_teacher()


def test_runs_are_found_in_nested_folders_one_row_each_and_stages_are_none(folder: Path) -> None:
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


def test_a_corrupt_run_is_listed_as_unreadable_with_the_reason(folder: Path) -> None:
    (folder / "cut").mkdir()
    (folder / "cut" / "results.json").write_text((folder / "results.json").read_text()[:500])
    runs = load_runs(folder).set_index("path")
    assert runs["status"].to_dict() == {str(folder): "finished", str(folder / "cut"): "unreadable"}
    assert "cut off" in str(runs["reason"][str(folder / "cut")])


def test_a_folder_without_runs_gives_an_empty_table_and_no_folder_is_refused(
    tmp_path: Path,
) -> None:
    assert load_runs(tmp_path).empty
    with pytest.raises(RequestError, match="There is no folder"):
        load_runs(tmp_path / "none")
    with pytest.raises(RequestError, match="There is no"):
        load_run(tmp_path)


def test_reading_runs_imports_neither_torch_nor_pandas_before_they_are_needed() -> None:
    code = (
        "import sys, kd_app.reporting.runs, kd_app.reporting.tables; print({'torch', 'pandas',"
        " 'timm', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
