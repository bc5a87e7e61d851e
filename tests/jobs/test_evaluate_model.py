"""The models that kd-evaluate measures without a run."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from kd_app.config import Decoding, RequestError
from kd_app.config.compose import compose_config
from kd_app.jobs.evaluate_model import evaluate_model, open_model_spec, read_model_pixels
from kd_app.models.save import save_model
from kd_app.models.spec import ImageStats
from kd_app.reporting.results import write
from kd_app.run.recorded_pixels import RecordedPixels, describe_stats
from tests.builders import DIGITS, GRAY, teacher_folder
from tests.deployment.graphs import write_linear
from tests.reporting.run_folders import build_results


def test_a_model_folder_a_run_and_a_teachers_folder_are_opened(tmp_path: Path) -> None:
    student = teacher_folder(tmp_path / "run" / "student")
    (tmp_path / "run" / "results.json").touch()
    teacher = tmp_path / "run" / "teacher"
    teacher.mkdir()
    (teacher / "reference.json").write_text(
        f'{{"name": "a", "source": "b", "sha256": "c", "stage": null, "path": "{student}"}}'
    )
    for name in (tmp_path / "run", student, student / "model.safetensors", teacher):
        spec, run = open_model_spec(str(name), None)
        assert (spec.name, spec.origin.label_names) == ("resnet8", DIGITS)
        assert run == tmp_path / "run"


def test_a_runs_model_sees_what_the_run_recorded_and_an_exported_file_what_it_records(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    stats = ImageStats(1, 8, (0.3,), (0.4,), 8)
    student, recorded = teacher_folder(run / "student"), describe_stats(stats).model_dump()
    write(run / "results.json", build_results(image_stats=recorded))
    (run / "export").mkdir()
    file = write_linear(run / "export", GRAY, ("a", "b"), decoding=Decoding(3, 48))
    gray, color = Decoding(1, 320), Decoding(3, 48)
    for name, decoding in ((run, gray), (student, gray), (file, color)):
        spec, folder = open_model_spec(str(name), None)
        assert folder == run
        assert read_model_pixels(spec, folder) == RecordedPixels(stats, decoding)
        assert read_model_pixels(spec, None) == RecordedPixels(None, decoding)
    (run / "export" / "manifest.json").touch()
    with pytest.raises(RequestError, match=f"model={file}"):
        open_model_spec(str(run / "export"), None)


def test_a_weights_file_needs_an_architecture(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "net.pth")
    with pytest.raises(RequestError, match="Set architecture=<a timm model>"):
        open_model_spec(str(tmp_path / "net.pth"), None)
    spec, run = open_model_spec(str(tmp_path / "net.pth"), "resnet8")
    assert (spec.name, spec.origin.kind, spec.origin.path) == (
        "resnet8",
        "file",
        tmp_path / "net.pth",
    )
    assert run is None
    with pytest.raises(RequestError, match="no such file or folder"):
        open_model_spec(str(tmp_path / "none.pth"), None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": None}, "data= is not set"),
        ({"run": "runs/a"}, "run= or cascade= names another thing"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], expected: str) -> None:
    config = compose_config("evaluate", ["model=net.pth", "out=x", "data=digits"])
    with pytest.raises(RequestError, match=expected):
        evaluate_model({**config, **changes})


def test_a_model_that_outputs_an_embedding_is_measured_with_its_run(tmp_path: Path) -> None:
    model = timm.create_model("resnet8", in_chans=1, num_classes=6)
    entries = {"embedding": {"width": 6}}
    save_model(model, tmp_path / "m", pixels=GRAY, classes=(), license="none", entries=entries)
    config = compose_config("evaluate", [f"model={tmp_path / 'm'}", "out=x", "data=digits"])
    with pytest.raises(RequestError, match=r"outputs an embedding.*kd-evaluate run=<its run>"):
        evaluate_model(config)
