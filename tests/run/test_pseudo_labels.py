"""The labels that a control gives to images without one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_app.config import RequestError
from kd_app.data.pseudo_labels import assign_pseudo_labels, read_pseudo_labels
from kd_app.models.create import create
from kd_app.run import pseudo_labels
from kd_app.run.model import RunModel
from kd_app.run.pseudo_labels import check_images_to_label
from kd_app.run.role_jobs import build_control_job, draft_role_job
from kd_app.run.workspace import Workspace
from kd_app.training.job import TrainingJob
from tests.builders import build_workspace, results, teacher_folder
from tests.commands.call import TINY, succeed

CONTROLS = "controls=[labels_only,pseudo_labels]"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("run")
    overrides = (
        f"teacher.checkpoint={teacher_folder(folder / 'teacher')}",
        "student.name=resnet8",
        "data.label_fraction=0.1",
        "trainer.limit_test_batches=null",
        CONTROLS,
    )
    return build_workspace(folder, *overrides)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[TrainingJob]:
    """The requested jobs; none of them is trained."""
    requested: list[TrainingJob] = []

    def train(workspace: Workspace, job: TrainingJob, **listens: Any) -> RunModel:
        assert not listens, "the trackers show the controls"
        requested.append(job)
        created = create(job.model, job.input, len(workspace.classes), seed=job.recipe.seed)
        return RunModel(job.name, job.model, created)

    monkeypatch.setattr(pseudo_labels, "train", train)
    return requested


def test_the_control_learns_what_labels_only_predicts_for_the_other_images(
    workspace: Workspace, jobs: list[TrainingJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    control = workspace.spec.controls["pseudo_labels"]
    monkeypatch.setitem(vars(control), "pseudo_label_confidence", 0.1001)
    teacher = workspace.load_pretrained_teacher()
    assert teacher is not None
    job = build_control_job(workspace, "pseudo_labels", teacher)
    (labeler,) = jobs
    plain = build_control_job(workspace, "labels_only", teacher)
    data, trainer = workspace.data, workspace.spec.trainer
    assert labeler.name == plain.name
    assert labeler.describe_identity(data, trainer) == plain.describe_identity(data, trainer)
    assert (job.name, job.recipe, job.teacher) == ("pseudo_labels", plain.recipe, None)

    assert job.pseudo_labels is not None
    labels = read_pseudo_labels(job.pseudo_labels, len(data.files), len(data.classes))
    unlabeled = data.list_unlabeled_rows()
    assert unlabeled is not None
    created = create(labeler.model, labeler.input, 10, seed=labeler.recipe.seed)
    record = workspace.load_predictions(RunModel("labels_only", labeler.model, created), "train")
    rows = np.isin(record.index, unlabeled)
    expected = assign_pseudo_labels(
        record.logits[rows], record.index[rows], confidence=0.1001, num_images=len(data.files)
    )
    assert labels.tolist() == expected.tolist()
    count = int((labels >= 0).sum())
    assert 0 < count <= len(unlabeled)
    assert workspace.resolved["pseudo_labels"] == {
        "pseudo_labels": count,
        "unlabeled": len(unlabeled),
        "confidence": 0.1001,
    }


def test_other_labels_are_another_training(
    workspace: Workspace, jobs: list[TrainingJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = workspace.load_pretrained_teacher()
    assert teacher is not None
    hashes = []
    for confidence in (0.0, 0.99):
        control = workspace.spec.controls["pseudo_labels"]
        monkeypatch.setitem(vars(control), "pseudo_label_confidence", confidence)
        job = build_control_job(workspace, "pseudo_labels", teacher)
        hashes.append(job.hash_inputs(workspace.data)["pseudo_labels"])
        identity = job.describe_identity(workspace.data, workspace.spec.trainer)
        assert identity["pseudo_labels"] is True
        assert job.to_json()["pseudo_labels"] == str(job.pseudo_labels)
    assert hashes[0] != hashes[1]
    draft = draft_role_job(workspace, "pseudo_labels")
    assert draft.pseudo_labels is None
    assert "pseudo_labels" not in draft.hash_inputs(workspace.data)


def test_a_control_without_an_image_to_label_is_refused(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_images_to_label(workspace)
    labeled = workspace.data.list_rows("train")
    monkeypatch.setattr(type(workspace.data), "num_labeled", None)
    assert labeled is not None
    with pytest.raises(RequestError, match=f"each of the {len(labeled):,} training images has one"):
        check_images_to_label(workspace)


@pytest.mark.slow
def test_a_run_measures_the_control_and_a_second_one_reuses_its_stages(tmp_path: Path) -> None:
    few = [*TINY, "trainer=cpu", "data.label_fraction=0.1", CONTROLS]
    few += ["trainer.limit_test_batches=null", f"stages={tmp_path / 'stages'}"]
    first, second = (tmp_path / name for name in ("first", "second"))
    output = succeed(*few, f"out={first}")
    succeed(*few, "+tags=[again]", f"out={second}")
    content = results(first)
    control = content["test"]["pseudo_labels"]
    gain = content["test"]["student"]["top1"] - control["top1"]
    difference = content["test"]["gains"]["pseudo_labels"]
    assert difference["value"] == pytest.approx(gain)
    assert difference["low"] <= gain <= difference["high"]
    assert content["models"]["pseudo_labels"]["decided"]["confidence"] == 0.95
    assert "pseudo labels" in output
    assert "pseudo-labels" in (first / "report.html").read_text(encoding="utf-8")
    names = [each["name"] for each in content["stages"]]
    assert names.count("labels_only") == 2  # as the control, and to label images
    again = {each["name"]: each["status"] for each in results(second)["stages"]}
    assert again["labels-pseudo_labels"] == again["pseudo_labels"] == "reused"
