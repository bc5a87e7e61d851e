"""Images that only measure models: classes by name, and no split is drawn."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.data.base import RunData
from kd_app.data.build import build_data
from kd_app.data.evaluation import Evaluation
from tests.builders import image_folder

CLASSES = ("ant", "class0", "class1", "fly")


def serve(root: Path, evaluation: Evaluation, tmp_path: Path) -> RunData:
    config = compose_config("distill", ["data=folder", f"data.root={root}"])
    data = build_data(config["data"])
    data.evaluate_only(evaluation)
    data.list()
    scan = data.scan_job(32)
    assert scan is not None
    (tmp_path / "scan").mkdir(exist_ok=True)
    scan.run(tmp_path / "scan", lambda done, total: None)
    data.load(tmp_path / "scan")
    return data


@pytest.mark.parametrize(("classes", "images"), [(2, 4), (1, 3), (1, 1)])
def test_few_images_of_few_classes_are_all_measured_as_the_models_classes(
    classes: int, images: int, tmp_path: Path
) -> None:
    root = image_folder(tmp_path / "photos", images=images, classes=classes)
    data = serve(root, Evaluation(CLASSES), tmp_path)
    assert data.classes == CLASSES
    assert data.sizes == {"train": 0, "validation": 0, "test": classes * images}
    targets = data.list_targets("test")
    assert targets is not None
    assert set(targets.tolist()) == set(range(1, 1 + classes))
    assert f"{4 - classes} of the 4 classes have no image here ('ant'" in data.notes[0]
    assert not any("batch_size" in note for note in data.notes)
    assert len(data.compute_pixel_statistics()[0]) == 3


def test_names_that_differ_in_case_are_matched_with_a_note(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "photos", images=2)
    data = serve(root, Evaluation(("Class1", "CLASS0")), tmp_path)
    assert data.list_targets("test").tolist() == [1, 1, 0, 0]  # type: ignore[union-attr]
    assert "read as equal: 'class0' as 'CLASS0', 'class1' as 'Class1'" in data.notes[0]


def test_names_that_differ_in_spaces_and_in_the_form_of_accents_are_matched(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "photos", images=2)
    (root / "class0").rename(root / unicodedata.normalize("NFD", "größe "))
    data = serve(root, Evaluation(("class1", unicodedata.normalize("NFC", "Größe"))), tmp_path)
    assert sorted(data.list_targets("test").tolist()) == [0, 0, 1, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize("classes", [("class0", "b"), ("CLASS1", "Class1", "class0")])
def test_a_class_that_the_models_lack_is_refused_by_name(
    classes: tuple[str, ...], tmp_path: Path
) -> None:
    root = image_folder(tmp_path / "photos", images=2)
    with pytest.raises(RequestError, match=r"the models do not have 'class1'"):
        serve(root, Evaluation(classes), tmp_path)


def test_a_predefined_split_is_measured_without_drawing(tmp_path: Path) -> None:
    for part, images in (("train", 1), ("test", 2)):
        image_folder(tmp_path / "photos" / part, images=images)
    data = serve(tmp_path / "photos", Evaluation(("class0", "class1"), "test"), tmp_path)
    assert data.sizes == {"train": 2, "validation": 0, "test": 4}
    with pytest.raises(RequestError, match=r"would be empty|no readable image"):
        serve(tmp_path / "photos", Evaluation(("class0", "class1"), "validation"), tmp_path)


def test_images_that_are_left_out_change_the_fingerprint(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "photos", images=3)
    data = serve(root, Evaluation(("class0", "class1")), tmp_path)
    before = data.fingerprint
    data.leave_out([0, 4])
    rows = data.list_rows("test")
    assert rows is not None
    assert np.array_equal(rows, [1, 2, 3, 5])
    assert data.fingerprint != before
