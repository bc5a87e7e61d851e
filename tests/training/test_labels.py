"""Trainings with partly labeled images: the images and steps of each model."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kd_app.config import InputSpec
from kd_app.config.compose import choose_all_labels, compose_config
from kd_app.data.batch import Batch
from kd_app.data.module import ImageData
from kd_app.reporting.console import Console
from kd_app.run.plan import describe_models
from kd_app.run.role_jobs import build_control_job, build_student_job, build_teacher_job
from kd_app.run.train import train
from kd_app.run.workspace import Workspace
from kd_app.specs.spec import build_spec
from kd_app.stages import Stages
from kd_app.training.module import Distillation
from tests.builders import image_folder, results, stage, teacher_folder
from tests.commands.call import call

FEW = (
    "data.label_fraction=0.1",
    "data.batch_size=64",
    "student.name=resnet8_narrow",
    "trainer.max_epochs=1",
    "trainer=cpu",
    "trainer.precision=32-true",
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_folder(tmp_path_factory.mktemp("teacher"), "resnet8_narrow")


def build_workspace(folder: Path, *words: str) -> Workspace:
    fixed = [f"stages={folder}", "logger=[]", *FEW]
    config = compose_config("distill", choose_all_labels([*fixed, *words]))
    workspace = Workspace(build_spec(config), Stages(folder), Console(silent=True), tracker=None)
    workspace.prepare_data()
    return workspace


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The training batches, in order."""
    rows: list[Batch] = []
    plain = Distillation.training_step

    def step(module: Distillation, batch: Any, batch_idx: int) -> Any:
        rows.append(batch)
        return plain(module, batch, batch_idx)

    monkeypatch.setattr(Distillation, "training_step", step)
    return rows


def test_the_student_trains_on_all_images_and_the_control_on_labeled_ones_in_as_many_steps(
    teacher: Path, tmp_path: Path, batches: list[Batch]
) -> None:
    workspace = build_workspace(tmp_path, f"teacher.checkpoint={teacher}")
    assert isinstance(workspace.data, ImageData)
    labeled = set(workspace.data.index.labeled_rows.tolist())
    assert len(labeled) == 129
    known = workspace.load_pretrained_teacher()
    assert known is not None
    train(workspace, build_student_job(workspace, known))
    student = list(batches)
    batches.clear()
    train(workspace, build_control_job(workspace, "labels_only", known))
    assert len(batches) == len(student) == 1295 // 64
    assert set(torch.cat([batch.index for batch in batches]).tolist()) == labeled
    assert len(set(torch.cat([batch.index for batch in student]).tolist())) > 1200
    for batch in student:
        assert batch.labeled is not None
        assert batch.labeled.tolist() == [number in labeled for number in batch.index.tolist()]
        assert torch.equal(batch.target >= 0, batch.labeled)
    assert all(batch.labeled is not None and bool(batch.labeled.all()) for batch in batches)


def test_a_teacher_of_the_run_trains_on_labeled_images_only(
    tmp_path: Path, batches: list[Batch]
) -> None:
    workspace = build_workspace(tmp_path, "teacher.name=resnet8", "teacher.max_epochs=1")
    train(workspace, build_teacher_job(workspace))
    assert isinstance(workspace.data, ImageData)
    assert set(torch.cat([batch.index for batch in batches]).tolist()) <= set(
        workspace.data.index.labeled_rows.tolist()
    )
    assert len(batches) == 1295 // 64


def test_the_plan_lists_the_labeled_images_and_their_use(teacher: Path, tmp_path: Path) -> None:
    lines = describe_models(
        build_workspace(
            tmp_path,
            f"teacher.checkpoint={teacher}",
            "data.views=4",
            "teacher.outputs=cached",
            "controls=[labels_only]",
            "trainer.max_epochs=2",
        ),
        ready=True,
    )
    data, _, control, student, cached, loss, labels = lines
    assert loss.startswith("Loss: ")
    assert labels.startswith("Labels: ")
    assert "129 of the training images have a label; 4 views of each in turn" in data
    assert cached == (
        "Teacher's outputs: cached as exact, 40 bytes a view, 2 views of 1,295 images, 0.0001 GB"
    )
    assert "on cross_entropy, on the 129 images with a label in as many steps, from" in control
    assert "with a label" not in student


def test_the_results_contain_the_number_of_labeled_images(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        f"teacher.checkpoint={teacher}",
        "debug=fdr",
        "logger=[csv]",
        "controls=[]",
        "out=run",
        "data.label_fraction=0.01",
        "loss=[nkd,soft_target]",
    ]
    note = (
        "10 of 1,295 training images keep their label (data.label_fraction=0.01); the others are"
        " used without"
    )
    assert call(*words).code == 0
    assert note in (tmp_path / "run" / "results.json").read_text(encoding="utf-8")


@pytest.mark.slow
def test_plan_and_check_list_unlabeled_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "photos", images=20)
    image_folder(tmp_path / "more", images=10, seed=1)
    known = teacher_folder(
        tmp_path / "teacher",
        pixels=InputSpec(3, 16, 16, (0.5,) * 3, (0.25,) * 3),
        classes=("class0", "class1"),
    )
    words = [
        "data=folder",
        "data.root=photos",
        "data.unlabeled=more",
        f"teacher.checkpoint={known}",
        "student.name=resnet8",
        "debug=fdr",
        "logger=[csv]",
    ]
    result = call(*words, "data.batch_size=16", "data.views=2", "teacher.outputs=cached", "out=run")
    assert (result.code, result.err) == (0, "")
    assert "28 of the training images have a label" in " ".join(result.out.split())
    assert results(tmp_path / "run")["data"]["sizes"]["unlabeled"] == 20
    stored = stage(tmp_path / "run", "answers-teacher-views")
    # 2 batches of 16 images in one epoch, 2 logits of 4 bytes each
    assert (stored / "rows.bin").stat().st_size == 2 * 16 * 2 * 4
    checked = call(*words, command="kd-check")
    assert (
        "Note: data: 20 images without labels (data.unlabeled=more) are also used for"
        in checked.out
    )
