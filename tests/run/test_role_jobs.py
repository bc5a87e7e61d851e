"""The training job of each role of a run."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kd_app.config import RequestError
from kd_app.run import role_jobs
from kd_app.run.initial_models import build_initial_models
from kd_app.run.model import RunModel
from kd_app.run.role_jobs import (
    build_control_job,
    build_student_job,
    build_teacher_job,
    check_batches,
    check_pair,
    draft_role_job,
    note_class_weights,
)
from kd_app.run.workspace import Workspace
from kd_app.specs.controls import compute_label_entropy
from kd_app.training.job import TrainingJob
from tests.builders import build_workspace, image_folder, teacher_folder
from tests.specs.test_controls import FEW_CANDIDATES

ALL = "controls=[labels_only,smoothed_labels,shuffled_teacher,match_wall_time,other_family]"


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_folder(tmp_path_factory.mktemp("teacher"), "wrn_16_1", license="cc-by-nc-4.0")


@pytest.fixture(scope="module")
def workspace(teacher_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    overrides = (f"teacher.checkpoint={teacher_path}", "student.name=resnet8", ALL)
    epochs = ("trainer.max_epochs=3", "teacher.max_epochs=3")
    equal = "loss.cross_entropy.class_weights=null"  # else a job has another recipe than the run
    folder = tmp_path_factory.mktemp("run")
    return build_workspace(folder, *overrides, *epochs, equal, *FEW_CANDIDATES)


@pytest.fixture(scope="module")
def teacher(workspace: Workspace) -> RunModel:
    loaded = workspace.load_pretrained_teacher()
    assert loaded is not None
    return loaded


def test_the_teacher_learns_from_labels_on_fresh_views(tmp_path: Path) -> None:
    job = build_teacher_job(build_workspace(tmp_path, "teacher.max_epochs=7", "data.views=2"))
    assert (job.name, job.teacher, job.fresh_views) == ("teacher", None, True)
    assert job.recipe.max_epochs == 7
    assert not job.recipe.needs_teacher


def test_the_student_learns_from_the_teacher_by_the_runs_recipe(
    workspace: Workspace, teacher: RunModel
) -> None:
    job = build_student_job(workspace, teacher)
    assert job.teacher is not None
    assert job.teacher.created is teacher.loaded
    assert (job.name, job.model, job.recipe) == (
        "student",
        workspace.spec.student,
        workspace.spec.recipe,
    )
    assert (job.partners, job.fresh_views, job.teacher.cached) == (None, False, None)
    assert job.license == "cc-by-nc-4.0"


def test_a_part_of_validation_is_not_kept_as_the_teachers_logits(
    workspace: Workspace, teacher: RunModel
) -> None:
    job = build_student_job(workspace, teacher)
    assert workspace.limit is not None
    assert job.teacher is not None
    assert job.teacher.validation_logits is None


def test_the_teachers_logits_on_validation_are_those_of_its_stage(
    teacher_path: Path, tmp_path: Path
) -> None:
    overrides = (f"teacher.checkpoint={teacher_path}", "student.name=resnet8", "controls=[]")
    whole = build_workspace(tmp_path, *overrides, "trainer.limit_test_batches=null")
    teacher = whole.load_pretrained_teacher()
    job = build_student_job(whole, teacher)
    assert teacher is not None
    assert job.teacher is not None
    assert job.teacher.validation_logits == whole.cache_predictions(teacher, "validation")
    unmeasured = build_student_job(whole, replace(teacher, no_metrics_reason="has other classes"))
    assert unmeasured.teacher is not None
    assert unmeasured.teacher.validation_logits is None


def test_a_job_like_the_students_has_its_own_name_model_and_recipe(
    workspace: Workspace, teacher: RunModel
) -> None:
    recipe = replace(workspace.spec.recipe, max_epochs=9)
    job = build_student_job(workspace, teacher, name="finetune", model=teacher.spec, recipe=recipe)
    assert (job.name, job.model, job.recipe) == ("finetune", teacher.spec, recipe)
    assert job.input == teacher.loaded.pixels


def test_labels_only_has_no_teacher(workspace: Workspace, teacher: RunModel) -> None:
    job = build_control_job(workspace, "labels_only", teacher)
    assert (job.name, job.teacher, job.license) == ("labels_only", None, "cc-by-4.0")
    assert list(job.recipe.loss) == ["cross_entropy"]
    assert job.model is workspace.spec.student


def test_labels_are_as_soft_as_the_teachers_logits(workspace: Workspace, teacher: RunModel) -> None:
    job = build_control_job(workspace, "smoothed_labels", teacher)
    smoothing = job.recipe.loss["cross_entropy"]["smoothing"]
    decided = workspace.resolved["smoothed_labels"]
    assert compute_label_entropy(smoothing, 10) == pytest.approx(
        decided["teacher_entropy"], abs=1e-4
    )
    assert decided["loss"] == job.recipe.loss
    assert job.teacher is None


def test_the_shuffled_teacher_sees_another_image_of_the_class(
    workspace: Workspace, teacher: RunModel
) -> None:
    job = build_control_job(workspace, "shuffled_teacher", teacher)
    assert job.partners == "class"
    assert job.teacher is not None
    assert job.recipe.loss == workspace.spec.recipe.loss


def test_match_wall_time_trains_for_the_epochs_that_take_as_long(
    workspace: Workspace, teacher: RunModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: dict[str, TrainingJob] = {}

    def measure(
        epochs: int, jobs: Mapping[str, TrainingJob], data: Any, trainer: Any, folder: Path
    ) -> None:
        measured.update(jobs)
        (folder / "epochs.json").write_text(
            json.dumps({"max_epochs": 2 * epochs, "seconds_an_epoch": {"student": 1.0}})
        )

    monkeypatch.setattr(role_jobs, "match_wall_time", measure)
    job = build_control_job(workspace, "match_wall_time", teacher)
    assert job.recipe.max_epochs == 6
    assert workspace.resolved["match_wall_time"]["max_epochs"] == 6
    assert list(measured) == ["student", "match_wall_time"]
    assert [each.teacher is None for each in measured.values()] == [False, True]


def test_the_model_of_another_family_is_the_nearest_in_cost(
    workspace: Workspace, teacher: RunModel
) -> None:
    job = build_control_job(workspace, "other_family", teacher)
    assert job.model is workspace.resolve_spec("other_family")
    assert job.model.name != "resnet8"
    assert set(workspace.resolved["other_family"]) >= {"macs", "student_macs"}


def test_a_draft_has_no_teacher(workspace: Workspace) -> None:
    drafts = {
        role: draft_role_job(workspace, role) for role in (*workspace.spec.controls, "student")
    }
    assert all(job.teacher is None for job in drafts.values())
    assert {job.recipe.max_epochs for job in drafts.values()} == {3}
    assert drafts["shuffled_teacher"].partners == "class"
    assert drafts["student"].recipe is workspace.spec.recipe


def test_cached_logits_are_computed_once_for_students_of_one_input(
    teacher_path: Path, tmp_path: Path
) -> None:
    overrides = (f"teacher.checkpoint={teacher_path}", "student.name=resnet8", "controls=[]")
    cached = build_workspace(tmp_path, *overrides, "data.views=1", "teacher.outputs=cached")
    teacher = cached.load_pretrained_teacher()
    outputs = [
        job.teacher.cached
        for job in (
            build_student_job(cached, teacher),
            build_student_job(cached, teacher, name="link-1"),
        )
        if job.teacher is not None
    ]
    assert len(outputs) == 2
    assert outputs[0] == outputs[1]
    assert outputs[0] is not None
    (shard,) = outputs[0].shards
    assert (outputs[0].format, (shard / "rows.bin").is_file()) == ("exact", True)


def test_a_pair_that_a_term_can_not_compare_is_refused_before_anything_is_trained(
    teacher_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (f"teacher.checkpoint={teacher_path}", "student.name=resnet8")
    workspace = build_workspace(tmp_path, *overrides)
    models = build_initial_models(workspace, workspace.load_pretrained_teacher())
    check_pair(workspace, models)

    def refuse(*_: Any) -> None:
        raise RequestError("shapes differ")

    monkeypatch.setattr("kd_app.losses.distillation_loss.DistillationLoss.build", refuse)
    with pytest.raises(RequestError, match="shapes differ"):
        check_pair(workspace, models)


def test_a_last_batch_of_one_image_is_refused_if_a_trained_model_can_not_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = build_workspace(
        tmp_path, "teacher.name=mobilenetv3_small_050", "student.name=resnet8", "controls=[]"
    )
    check_batches(workspace, ready=False)
    monkeypatch.setattr(type(workspace.data), "smallest_batch", 1)
    check_batches(workspace, ready=True)  # resnet8 has maps of more than one value
    with pytest.raises(RequestError, match=r"A training batch has one image, .* of the teacher"):
        check_batches(workspace, ready=False)


def test_a_plan_says_that_rare_classes_count_more(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "photos", images=30)
    for path in sorted((folder / "class1").iterdir())[5:]:
        path.unlink()
    words = ("data=folder", f"data.root={folder}", "teacher=none", "loss=[cross_entropy]")
    workspace = build_workspace(tmp_path, *words)
    (note,) = note_class_weights(workspace)
    assert "22 labeled training images and the smallest 3" in note
    assert build_student_job(workspace, None).recipe.loss["cross_entropy"]["class_weights"]
    equal = build_workspace(tmp_path, *words, "loss.cross_entropy.class_weights=null")
    assert note_class_weights(equal) == []


def test_balanced_class_weights_count_the_labeled_training_images(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "photos", images=20)
    for path in sorted((folder / "class1").iterdir())[10:]:
        path.unlink()
    workspace = build_workspace(
        tmp_path,
        "data=folder",
        f"data.root={folder}",
        "teacher=none",
        "loss=[cross_entropy]",
        "loss.cross_entropy.class_weights=balanced",
        "student.name=resnet8",
        "student.freeze=conv1",
    )
    job = build_student_job(workspace, None)
    counts = workspace.data.count_labels()
    assert counts is not None
    assert counts.tolist() == [14, 7]
    assert job.recipe.loss["cross_entropy"]["class_weights"] == [21 / 28, 21 / 14]
    assert job.recipe.freeze == ["conv1"]
    assert job.describe_identity(workspace.data, workspace.spec.trainer)["freeze"] == ["conv1"]
    other = build_student_job(workspace, None, model=workspace.spec.student)
    assert other.recipe.freeze == []
