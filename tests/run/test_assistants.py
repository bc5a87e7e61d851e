"""Teacher assistants: each one is distilled from the previous one."""

from pathlib import Path
from typing import Any

import pytest

from kd_app.models.create import create
from kd_app.run import assistants
from kd_app.run.assistants import train_assistants
from kd_app.run.model import RunModel
from kd_app.run.workspace import Workspace
from kd_app.training.job import TrainingJob
from tests.builders import build_workspace, teacher_folder


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[TrainingJob]:
    """The requested jobs; none of them is trained."""
    requested: list[TrainingJob] = []

    def train(workspace: Workspace, job: TrainingJob, **listens: Any) -> RunModel:
        assert not listens, "no tracker and no pruner follows an assistant"
        requested.append(job)
        created = create(job.model, job.input, len(workspace.classes), seed=job.recipe.seed)
        return RunModel(job.name, job.model, created)

    monkeypatch.setattr(assistants, "train", train)
    return requested


def test_each_assistant_learns_from_the_one_before_it(
    tmp_path: Path, jobs: list[TrainingJob]
) -> None:
    workspace = build_workspace(
        tmp_path,
        f"teacher.checkpoint={teacher_folder(tmp_path / 'teacher')}",
        "teacher.chain=[resnet14,resnet8]",
        "teacher.seed=40",
        "student.name=resnet8",
        "seed=3",
        "callbacks=[ema]",
        "controls=[]",
    )
    teacher = workspace.load_pretrained_teacher()
    assert teacher is not None
    last = train_assistants(workspace, teacher)
    first, second = jobs
    assert (first.name, second.name) == ("link-1", "link-2")
    assert (first.model.name, second.model.name) == ("resnet14", "resnet8")
    assert first.teacher is not None
    assert second.teacher is not None
    assert first.teacher.created is teacher.loaded
    assert second.teacher.model is first.model
    assert (last.role, last.spec) == ("teacher", second.model)
    assert [job.recipe.seed for job in jobs] == [41, 42]
    assert {len(job.recipe.callbacks) for job in jobs} == {0}
    assert {*first.recipe.loss} == {*workspace.spec.recipe.loss}


def test_without_assistants_the_teacher_itself_teaches(
    tmp_path: Path, jobs: list[TrainingJob]
) -> None:
    folder = teacher_folder(tmp_path / "teacher")
    workspace = build_workspace(
        tmp_path, f"teacher.checkpoint={folder}", "student.name=resnet8", "controls=[]"
    )
    teacher = workspace.load_pretrained_teacher()
    assert teacher is not None
    assert train_assistants(workspace, teacher) is teacher
    assert not jobs
