import importlib.util
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing import (  # type: ignore[import-untyped]
    event_accumulator,
)

from kd_app.config import RequestError
from kd_app.tracking import MLflow, TensorBoard
from tests.tracking.runs import build_tracker, train, whole_run


def test_tensorboard_has_the_curves_of_every_stage_and_the_students_metrics(tmp_path: Path) -> None:
    assert whole_run(tmp_path / "fm", {"tensorboard": TensorBoard()}) == []
    for stage in ("teacher", "labels_only", "student"):
        events = event_accumulator.EventAccumulator(str(tmp_path / "fm" / "tensorboard" / stage))
        events.Reload()
        assert [(point.step, point.value) for point in events.Scalars("train/loss")] == [
            (5, 1.0),
            (15, 0.5),
            (25, pytest.approx(1 / 3)),
        ]
        assert ("test.student.top1" in events.Tags()["scalars"]) == (stage == "student")
    assert events.Scalars("test.student.top1")[0].value == pytest.approx(0.85)


def test_a_resumed_training_has_each_point_once_in_tensorboard(tmp_path: Path) -> None:
    for before, epochs in ((0, 2), (3, 3)):  # the first attempt wrote 4 points and saved 3
        tracker = build_tracker(tmp_path / "fm", {"tensorboard": TensorBoard()}, [])
        train(tracker, "student", epochs=epochs, before=before)
        tracker.close(exit_code=0)
        time.sleep(
            1 - time.time() % 1
        )  # TensorBoard reads files in the order of the seconds in their names
    events = event_accumulator.EventAccumulator(str(tmp_path / "fm" / "tensorboard" / "student"))
    events.Reload()
    assert [point.step for point in events.Scalars("train/loss")] == [5, 15, 25]
    assert [point.step for point in events.Scalars("validation/top1")] == [10, 20, 30]


def mlflow_runs(uri: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("kd_app")
    assert experiment is not None
    return client, {
        run.data.tags["stage"]: run for run in client.search_runs([experiment.experiment_id])
    }


def test_mlflow_has_a_run_for_every_stage_with_curves_parameters_and_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert whole_run(tmp_path / "fm", {"mlflow": MLflow(experiment="kd_app", uri=None)}) == []
    client, runs = mlflow_runs((tmp_path / "fm" / "mlflow").as_uri(), monkeypatch)
    assert {stage: run.info.status for stage, run in runs.items()} == dict.fromkeys(
        ("teacher", "labels_only", "student"), "FINISHED"
    )
    student = runs["student"]
    assert [
        (point.step, point.value)
        for point in client.get_metric_history(student.info.run_id, "train/loss")
    ][:2] == [(5, 1.0), (15, 0.5)]
    assert student.data.params["loss/soft_target/temperature"] == "4.0"
    assert student.data.params["data/root"] == "photos"
    assert student.data.tags["group"] == "fm"
    assert student.data.metrics["test.student.top1"] == 0.85
    assert "test.student.top1" not in runs["teacher"].data.metrics


@pytest.mark.parametrize(("code", "status"), [(1, "FAILED"), (130, "KILLED")])
def test_mlflow_has_the_status_of_an_ended_run(
    code: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = (tmp_path / "elsewhere").as_uri()
    tracker = build_tracker(tmp_path / "fm", {"mlflow": MLflow(experiment="kd_app", uri=uri)}, [])
    train(tracker, "student")
    tracker.close(exit_code=code)
    assert mlflow_runs(uri, monkeypatch)[1]["student"].info.status == status


def test_a_missing_package_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.util.find_spec

    def missing(name: str, package: str | None = None) -> Any:
        return None if name in ("mlflow", "tensorboard", "sqlalchemy") else original(name, package)

    monkeypatch.setattr("kd_app.tracking.lightning_loggers.find_spec", missing)
    with pytest.raises(RequestError, match="pip install tensorboard"):
        TensorBoard()
    with pytest.raises(RequestError, match="pip install mlflow-skinny"):
        MLflow(experiment="kd_app", uri=None)


def test_a_database_without_its_package_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "kd_app.tracking.lightning_loggers.find_spec",
        lambda name: None if name == "sqlalchemy" else object(),
    )
    with pytest.raises(
        RequestError, match=r"'pip install mlflow', or use logger\.mlflow\.uri=null"
    ):
        MLflow(experiment="kd_app", uri="sqlite:///runs.db")
