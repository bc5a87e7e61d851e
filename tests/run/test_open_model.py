"""The model that a path refers to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_app.config import Decoding, RequestError
from kd_app.deployment.manifest import describe_decoding
from kd_app.run.open_model import (
    check_same_classes,
    open_cascade,
    open_file,
    open_model,
)
from tests.builders import DIGITS, GRAY, teacher_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_folder(tmp_path_factory.mktemp("models") / "net")


def write_run(folder: Path, **reference: Any) -> Path:
    """A run folder with a student and a reference to its teacher."""
    teacher_folder(folder / "student")
    (folder / "results.json").write_text("{}", encoding="utf-8")
    (folder / "teacher").mkdir()
    content = {"name": "resnet8", "source": "x", "sha256": "ab", "stage": None, "path": None}
    text = json.dumps({**content, **reference})
    (folder / "teacher" / "reference.json").write_text(text, encoding="utf-8")
    return folder


def test_a_model_folder_is_opened_with_its_classes_and_input(folder: Path) -> None:
    opened = open_model(str(folder), threads=None)
    assert (opened.model.classes, opened.model.pixels) == (DIGITS, GRAY)
    assert (opened.file, opened.run) == (folder / "model.safetensors", None)
    images = np.zeros((2, 1, 8, 8), np.uint8)
    assert opened.model.infer_logits(images).shape == (2, 10)
    assert open_file(opened.file, threads=1).classes == DIGITS


def test_a_run_is_its_student_and_its_teacher_folder_the_teacher(
    folder: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", path=str(folder))
    student = open_model(str(run), threads=None)
    assert (student.file.parent, student.run) == (run / "student", run)
    teacher = open_model(str(run / "teacher"), threads=None)
    assert (teacher.file.parent, teacher.run) == (folder, run)


@pytest.mark.parametrize(
    ("reference", "message"),
    [({}, "so no folder contains it"), ({"path": "gone"}, "is not a model folder")],
)
def test_a_teacher_that_is_in_no_folder_is_refused(
    tmp_path: Path, reference: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        open_model(str(write_run(tmp_path / "run", **reference) / "teacher"), threads=None)


def test_a_path_that_is_not_a_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="Did you mean 'net'"):
        open_model(str(folder.parent / "nett"), threads=None)
    with pytest.raises(RequestError, match=r"contains neither results.json nor config.json"):
        open_model(str(tmp_path), threads=None)
    with pytest.raises(RequestError, match="is not a model file"):
        open_model(str(folder / "config.json"), threads=None)
    for name in ("lite0.safetensors", "model_best.pth.tar"):
        (tmp_path / name).touch()
        with pytest.raises(RequestError, match=r"contains weights, but not the model .*save_for"):
            open_model(str(tmp_path / name), threads=None)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(RequestError, match=r"Name one of its files: model\.onnx\. Expected"):
        open_model(str(tmp_path), threads=None)


def test_an_imagenet_model_without_names_has_the_words_of_its_classes(tmp_path: Path) -> None:
    classes = tuple(map(str, range(1000)))
    folder = teacher_folder(tmp_path / "net", classes=classes)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["label_names"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert open_model(str(folder), threads=None).model.classes[1] == "goldfish, Carassius auratus"


def test_a_model_that_timm_can_not_build_is_refused(tmp_path: Path) -> None:
    broken = teacher_folder(tmp_path / "net")
    config = json.loads((broken / "config.json").read_text(encoding="utf-8"))
    for content, message in (
        ({**config, "architecture": "linear"}, "is a linear, which is not a timm model"),
        ({}, "has no model in"),
    ):
        (broken / "config.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(RequestError, match=message):
            open_model(str(broken), threads=None)


def test_a_file_that_describes_no_cascade_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cascade.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RequestError, match=r"cascade\.json"):
        open_cascade(tmp_path / "cascade.json", threads=1)


def test_models_of_a_cascade_have_the_same_classes_in_the_same_order() -> None:
    check_same_classes([("a", ("x", "y")), ("b", ("x", "y"))])
    with pytest.raises(RequestError, match="class 0 is 'x' in the first and 'y' in the second"):
        check_same_classes([("a", ("x", "y")), ("b", ("y", "x"))])
    with pytest.raises(RequestError, match="they differ in 'z'"):
        check_same_classes([("a", ("x", "y")), ("b", ("x", "z"))])


def test_images_are_decoded_as_in_the_run_or_large_enough_for_the_model(
    folder: Path, tmp_path: Path
) -> None:
    assert open_model(str(folder), threads=None).model.decoding == Decoding(1, 320)
    run = write_run(tmp_path / "run", path=str(folder))
    path = run / "student" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    decoding = describe_decoding(Decoding(3, 442))
    path.write_text(json.dumps({**config, "decoding": decoding}), encoding="utf-8")
    for name in (run, run / "student", run / "teacher"):
        assert open_model(str(name), threads=None).model.decoding == Decoding(3, 442)
    other = {**decoding, "orientation": "as stored"}
    path.write_text(json.dumps({**config, "decoding": other}), encoding="utf-8")
    with pytest.raises(RequestError, match="does not say how to decode images as kd_app does"):
        open_model(str(run), threads=None)
