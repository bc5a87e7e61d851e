"""The data and models of a run, and the cache of the models' outputs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_app.config import Decoding, RequestError, RunError
from kd_app.run.model import RunModel
from kd_app.run.workspace import Workspace
from kd_app.stages import Stage
from tests.builders import DIGITS, build_workspace, image_folder, teacher_folder

Models = dict[str, RunModel]


def test_a_prepared_workspace_has_classes_and_image_statistics(digits: Workspace) -> None:
    stats = digits.compute_image_stats()
    assert digits.classes == DIGITS
    assert (stats.channels, stats.size) == (1, 8)
    assert digits.decoding == Decoding(channels=1, shorter_side=320)
    assert 0 < stats.mean[0] < 1
    digits.check_losses()


def test_a_second_command_on_the_same_images_reads_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = image_folder(tmp_path / "photos", images=12)
    image_folder(tmp_path / "more", images=2, classes=1)
    words = ("data=folder", f"data.root={photos}", f"data.unlabeled={tmp_path / 'more'}")
    models = ("teacher.name=resnet8", "student.name=resnet8", "controls=[]", "data.image_size=16")
    first = build_workspace(tmp_path, *words, *models)
    read: list[object] = []
    for name in ("data.fingerprint.hash_file", "data.files.open_draft", "data.files.open_image"):
        monkeypatch.setattr(f"kd_app.{name}", lambda *each, **_: read.append(each))
    again = build_workspace(tmp_path, *words, *models, "seed=1", f"out={tmp_path / 'other'}")
    assert again.data.fingerprint == first.data.fingerprint
    assert read == []


def test_a_teacher_with_the_datas_classes_is_used_without_training(models: Models) -> None:
    teacher = models["teacher"]
    assert (teacher.role, teacher.spec.name, teacher.folder) == ("teacher", "resnet14", None)
    assert teacher.no_metrics_reason == ""
    assert teacher.load_runner() is teacher.loaded.model


def test_a_teacher_with_random_weights_is_trained_first(tmp_path: Path) -> None:
    trained = build_workspace(tmp_path, "teacher.max_epochs=1", "controls=[]")
    assert trained.load_pretrained_teacher() is None
    untrained = build_workspace(tmp_path, "teacher.max_epochs=0", "controls=[]")
    with pytest.raises(RequestError, match="forbids its training: its logits would be random"):
        untrained.load_pretrained_teacher()


def test_a_teacher_with_other_classes_has_no_metrics(tmp_path: Path) -> None:
    other = teacher_folder(tmp_path / "teacher", classes=("a", "b"))
    overrides = (
        f"teacher.checkpoint={other}",
        "teacher.max_epochs=0",
        "loss=[cross_entropy,embedding_mse]",
    )
    teacher = build_workspace(tmp_path, *overrides, "controls=[]").load_pretrained_teacher()
    assert teacher is not None
    assert teacher.no_metrics_reason.endswith("has other classes than the data")
    softened = build_workspace(tmp_path, *overrides, "controls=[smoothed_labels]")
    with pytest.raises(RequestError, match="smoothed_labels makes labels as soft as"):
        softened.load_pretrained_teacher()


def test_each_role_has_a_model_and_a_license(digits: Workspace) -> None:
    assert digits.resolve_spec("teacher") is digits.spec.teacher
    assert digits.resolve_spec("labels_only") is digits.spec.student
    assert digits.resolve_license("student", uses_teacher=True) == "cc-by-nc-4.0"
    assert digits.resolve_license("labels_only", uses_teacher=False) == "cc-by-4.0"


def test_predictions_are_computed_once(
    digits: Workspace, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = digits.load_predictions(models["student"], "validation")
    assert first.logits.shape == (len(first.target), 10)
    monkeypatch.setattr(digits, "predict", None)
    again = digits.load_predictions(models["student"], "validation")
    assert np.array_equal(again.logits, first.logits)


def test_all_splits_are_predicted_one_after_the_other(tmp_path: Path) -> None:
    workspace = build_workspace(
        tmp_path, "student.name=resnet8", "controls=[]", "trainer.limit_test_batches=null"
    )
    student = workspace.load_model(workspace.spec.student, seed=0)
    everything = workspace.predict(student, "all")
    assert sorted(everything.index) == list(range(sum(workspace.data.sizes.values())))


def test_the_trials_of_a_sweep_share_the_speed(
    digits: Workspace, models: Models, tmp_path: Path
) -> None:
    def fail() -> Any:
        raise AssertionError("measured twice")

    speeds = {"student": 10.0, "teacher": 2.0}
    assert digits.measure_speed(models, tmp_path, lambda: speeds) == speeds
    assert digits.measure_speed(models, tmp_path, fail) == speeds


def test_a_stage_that_was_looked_up_only_is_not_used(digits: Workspace) -> None:
    config: dict[str, Any] = {"size": (1, 2)}
    assert digits.find("answer", config, {}) is None
    built = digits.find_or_build("answer", config, {}, lambda folder: (folder / "a").touch())
    number = len(digits.used)
    stage = digits.find("answer", {"size": [1, 2]}, {})
    assert stage is not None
    assert stage.path == built.path
    assert len(digits.used) == number


def test_a_killed_loader_process_is_explained(digits: Workspace) -> None:
    def build(folder: Path) -> None:
        raise RuntimeError("DataLoader worker (pid 1) is killed.")

    with pytest.raises(RunError, match=r"is killed\. That process loaded images"):
        digits.find_or_build("broken", {}, {}, build)


def test_nothing_is_refused_once_a_model_was_trained(tmp_path: Path) -> None:
    workspace = build_workspace(tmp_path, "controls=[]")
    (tmp_path / "training.json").touch()
    with pytest.raises(RequestError, match=r"^late$"), workspace.keep_work():
        raise RequestError("late")
    workspace.used.append(Stage("student", tmp_path, 1.0, is_new=False))
    with pytest.raises(RequestError), workspace.keep_work():
        raise RequestError("late")
    workspace.used.append(Stage("teacher", tmp_path, 1.0, is_new=True))
    with pytest.raises(RunError, match=r"late Completed work is kept"), workspace.keep_work():
        raise RequestError("late")


def test_the_logits_and_the_embeddings_of_one_teacher_are_kept_apart(tmp_path: Path) -> None:
    teacher_folder(tmp_path / "t")
    words = (f"teacher.checkpoint={tmp_path / 't'}", "student.name=resnet8", "controls=[]")
    widths = []
    for task in ("classification", "embedding"):
        workspace = build_workspace(tmp_path, *words, f"task={task}")
        teacher = workspace.load_pretrained_teacher()
        assert teacher is not None
        widths.append(workspace.load_predictions(teacher, "validation").logits.shape[1])
    assert widths == [10, 64]
