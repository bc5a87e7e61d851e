"""The files in a run's folder."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from kd_app.digest import hash_file
from kd_app.metrics.record import Predictions
from kd_app.run.model import RunModel
from kd_app.run.output import (
    list_files,
    list_groups,
    list_uploads,
    write_models,
    write_predictions,
    write_student,
)
from kd_app.run.workspace import Workspace


def test_files_are_listed_with_their_hashes(out: Path) -> None:
    for name in ("split.csv", "notes.txt", "results.json"):
        (out / name).write_text(name, encoding="utf-8")
    (out / "student").mkdir()
    (out / "student" / "config.json").write_text("{}", encoding="utf-8")
    files = list_files(out)
    assert [file.name for file in files] == ["split.csv", "student/config.json"]
    assert files[0].sha256 == hash_file(out / "split.csv")


def test_only_known_files_are_uploaded(out: Path) -> None:
    for name in ("config.yaml", "results.json", "secret.txt", ".lock"):
        (out / name).touch()
    assert [path.name for path in list_uploads(out)] == ["config.yaml", "results.json"]


def test_predictions_of_a_cascade_name_the_stage(digits: Workspace, out: Path) -> None:
    record = Predictions(
        np.arange(4), np.array([1, 2, 3, 4]), np.eye(10, dtype=np.float32)[[1, 2, 3, 5]]
    )
    write_predictions(out, digits, {"student": record}, stage=np.array([0, 1, 0, 1]))
    table = pd.read_parquet(out / "predictions.parquet")
    assert list(table["student_top1"]) == [1, 2, 3, 5]
    assert list(table["stage"]) == [0, 1, 0, 1]
    assert list_groups(digits, record) is None


def test_the_student_is_written_with_its_license_and_its_teacher(
    digits: Workspace, models: dict[str, RunModel], out: Path
) -> None:
    target = out / "student"
    target.mkdir()
    (target / "old.txt").touch()
    size = write_student(target, digits, models["teacher"])
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    assert size == (target / "model.safetensors").stat().st_size
    assert (config["license"], config["teacher"]) == ("cc-by-nc-4.0", "resnet14")
    assert not (target / "old.txt").exists()
    assert [path.name for path in out.iterdir()] == ["student"]


def test_the_teacher_is_written_as_a_reference(
    digits: Workspace, models: dict[str, RunModel], out: Path
) -> None:
    teacher = models["teacher"]
    write_models(out, digits, {"teacher": teacher, "student": teacher})
    text = (out / "teacher" / "reference.json").read_text(encoding="utf-8")
    assert json.loads(text)["sha256"] == teacher.loaded.weights.sha256
