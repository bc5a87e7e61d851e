"""What a run measures, by its task."""

from pathlib import Path

import pytest

from kd_app.config import InputSpec, RequestError
from kd_app.measurement.classification import measure_models
from kd_app.measurement.embedding import measure_embeddings
from kd_app.measurement.task_measurement import select_measurement
from tests.builders import build_workspace, image_folder, teacher_folder

COLOR = InputSpec(3, 16, 16, (0.5,) * 3, (0.25,) * 3)


def test_classes_are_measured_by_labels_and_images_by_neighbors(tmp_path: Path) -> None:
    workspace = build_workspace(tmp_path, "teacher=none", "loss=[cross_entropy]")
    assert select_measurement(workspace).measure is measure_models


def test_an_embedding_needs_more_images_than_neighbors(tmp_path: Path) -> None:
    photos = image_folder(tmp_path / "photos", images=8)
    teacher = teacher_folder(tmp_path / "teacher", pixels=COLOR)
    workspace = build_workspace(
        tmp_path,
        "data=images",
        f"data.root={photos}",
        "student.name=resnet8",
        f"teacher.checkpoint={teacher}",
        "neighbors.k=12",
    )
    measurement = select_measurement(workspace)
    assert measurement.measure is measure_embeddings
    with pytest.raises(RequestError, match=r"neighbors\.k=12 neighbors are compared, and 1\d "):
        measurement.check_run(workspace)
