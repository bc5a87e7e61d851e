"""One process of a distributed training."""

import json
from pathlib import Path
from typing import Any

import pytest

from kd_app.config import RequestError, RunError
from kd_app.run import worker
from kd_app.run.model import RunModel
from kd_app.run.role_jobs import build_student_job
from kd_app.run.worker import load_job, read_order
from kd_app.run.workspace import Workspace
from kd_app.tasks.embedding import Embedding
from kd_app.training.launch import FAILED, REFUSED, hash_job
from tests.builders import build_workspace, teacher_folder


def test_a_job_is_the_same_in_another_process(
    digits: Workspace, models: dict[str, RunModel]
) -> None:
    job = build_student_job(digits, models["teacher"])
    again = load_job(json.loads(json.dumps(job.to_json())), digits.data)
    assert again.to_json() == job.to_json()
    assert again.input == job.input
    assert again.teacher is not None
    assert again.teacher.created.weights.sha256 == models["teacher"].loaded.weights.sha256


def test_several_teachers_of_an_embedding_are_the_same_in_another_process(tmp_path: Path) -> None:
    members = [
        f"teacher.members.{name}.checkpoint={teacher_folder(tmp_path / name, net)}"
        for name, net in (("a", "resnet8"), ("b", "resnet10t"))
    ]
    workspace = build_workspace(
        tmp_path,
        *("data=digits", "task=embedding", "teacher=several", *members, "student.name=resnet8"),
    )
    teacher = workspace.load_pretrained_teacher()
    assert teacher is not None
    job = build_student_job(workspace, teacher)
    again = load_job(json.loads(json.dumps(job.to_json())), workspace.data)
    assert again.to_json() == job.to_json()
    assert again.task == Embedding(k=10, width=64 + 512)
    assert again.teacher is not None
    assert again.teacher.created.weights.sha256 == teacher.loaded.weights.sha256


def test_a_job_without_a_teacher_has_none(digits: Workspace) -> None:
    job = build_student_job(digits, None)
    assert load_job(job.to_json(), digits.data).teacher is None


def test_a_job_that_somebody_exchanged_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text('{"job": 1}', encoding="utf-8")
    sha256 = hash_job(path.read_bytes())
    assert read_order(path, sha256) == {"job": 1}
    path.write_text('{"job": 2}', encoding="utf-8")
    with pytest.raises(RunError, match="was changed between the start"):
        read_order(path, sha256)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RequestError("wrong seed"), REFUSED, "wrong seed"),
        (RunError("no memory"), FAILED, "no memory"),
        (ValueError("a bug"), FAILED, "ValueError: a bug"),
    ],
)
def test_an_error_is_the_last_line_and_an_exit_code(
    error: Exception,
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def train(order: dict[str, Any], rank: int) -> None:
        assert (order, rank) == ({"job": 1}, 3)
        raise error

    (tmp_path / "job.json").write_text('{"job": 1}', encoding="utf-8")
    sha256 = hash_job(b'{"job": 1}')
    monkeypatch.setattr("sys.argv", ["worker", str(tmp_path / "job.json"), sha256])
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(worker, "_train", train)
    monkeypatch.setattr(worker, "_end_with_parent", lambda: None)
    monkeypatch.setattr("os._exit", lambda number: (_ for _ in ()).throw(SystemExit(number)))
    with pytest.raises(SystemExit) as exit_:
        worker.main()
    assert exit_.value.code == code
    assert capsys.readouterr().err.splitlines()[-1] == message
