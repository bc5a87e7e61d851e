"""A job as a cached stage, and its listeners."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kd_app.run.model import RunModel
from kd_app.run.role_jobs import build_student_job
from kd_app.run.train import Listeners, find_trained, train
from kd_app.run.workspace import Workspace
from tests.builders import RecordingListener, build_workspace


class NamedListener:
    """Appends its name and the event to a log."""

    def __init__(self, name: str, log: list[Any]) -> None:
        self.name, self.log = name, log

    def start(self, stage: str, *_: Any) -> Callable[[dict[str, float], int], None]:
        self.log.append((self.name, "start", stage))
        return lambda row, step: self.log.append((self.name, row, step))

    def finish(self, stage: str, *_: Any) -> None:
        self.log.append((self.name, "finish", stage))


def test_several_listeners_are_called_in_order() -> None:
    log: list[Any] = []
    listeners = Listeners([NamedListener("a", log), NamedListener("b", log)])
    on_point = listeners.start("student", None, [])
    on_point({"loss": 1.0}, 7)
    listeners.finish("student", {}, None, list)
    assert log == [
        (name, *event)
        for event in (("start", "student"), ({"loss": 1.0}, 7), ("finish", "student"))
        for name in "ab"
    ]


def test_a_job_that_was_not_trained_has_no_model(
    digits: Workspace, models: dict[str, RunModel]
) -> None:
    assert find_trained(digits, build_student_job(digits, models["teacher"])) is None


def test_a_job_is_trained_once_and_its_listener_gets_the_curves(tmp_path: Path) -> None:
    workspace = build_workspace(
        tmp_path,
        "teacher=none",
        "loss=[cross_entropy]",
        "student.name=resnet8",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=1",
        "trainer.limit_val_batches=1",
    )
    job, first, second = (
        build_student_job(workspace, None),
        RecordingListener(),
        RecordingListener(),
    )
    model = train(workspace, job, listener=first)
    assert (model.role, model.folder) == ("student", workspace.used[-1].path)
    assert first.logged
    assert first.finished == ["student"]
    again = train(workspace, job, listener=second)
    assert again.folder == model.folder
    assert again.loaded.weights.sha256 == model.loaded.weights.sha256
    assert (second.logged, second.finished) == ([], ["student"])
    trained = find_trained(workspace, job)
    assert trained is not None
    assert trained.folder == model.folder
