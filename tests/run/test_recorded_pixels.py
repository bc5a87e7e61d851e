"""What a finished run recorded about its images."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kd_app.config import Decoding, InputSpec, RequestError
from kd_app.config.compose import compose_config
from kd_app.deployment.artifact import open_artifact
from kd_app.deployment.manifest import describe_decoding
from kd_app.models.composite import TeacherEnsemble
from kd_app.models.create import resolve_input
from kd_app.models.spec import ImageStats, ModelSpec
from kd_app.run.recorded_pixels import (
    RecordedPixels,
    choose_model_decoding,
    describe_conversion,
    describe_normalization,
    describe_stats,
    needs_image_stats,
    parse_stats,
    read_decoding,
    set_channels,
)
from kd_app.specs.model_specs import build_model_spec, open_artifact_teacher
from tests.builders import GRAY, teacher_folder
from tests.deployment.graphs import write_linear

STATS = ImageStats(3, 32, (0.4552, 0.2989, 0.2988), (0.1627, 0.1625, 0.1624), 48)


def build_weights_spec(tmp_path: Path) -> ModelSpec:
    """A model whose weights are in a plain file."""
    folder = teacher_folder(tmp_path / "saved")
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "net.pth")
    return build_model_spec(
        "teacher", {"name": "resnet8", "checkpoint": tmp_path / "net.pth"}, None
    )


def record_decoding(folder: Path, decoding: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "decoding": decoding}))


def test_images_that_came_normalized_are_noted_with_what_other_images_get() -> None:
    own = RecordedPixels(ImageStats(1, 8, (0.0,), (1.0,)))
    (note,) = describe_normalization(own, InputSpec(1, 8, 8, (0.0,), (1.0,)))
    assert "mean [0] and the deviation [1] of pixels in 0..1, because no other is" in note
    (note,) = describe_normalization(own, InputSpec(1, 8, 8, (0.4854,), (0.25,)))
    assert "mean [0.4854] and the deviation [0.25]" in note
    assert "because the model's configuration names it" in note
    for recorded in (RecordedPixels(STATS), RecordedPixels()):
        assert describe_normalization(recorded, InputSpec(1, 8, 8, (0.0,), (1.0,))) == []


@pytest.mark.parametrize("stats", [STATS, ImageStats(1, 8, (0.3,), (0.4,))])
def test_statistics_are_read_as_they_were_written(stats: ImageStats, tmp_path: Path) -> None:
    read = parse_stats(describe_stats(stats))
    assert read is not None
    spec = build_weights_spec(tmp_path)
    assert resolve_input(spec, read) == resolve_input(spec, stats)
    assert parse_stats(None) is None


def test_only_models_without_a_record_of_their_input_need_statistics(tmp_path: Path) -> None:
    plain = build_weights_spec(tmp_path)
    folder = build_model_spec("teacher", {"checkpoint": tmp_path / "saved"}, None)
    hub = build_model_spec("teacher", {"name": "resnet18.a1_in1k"}, None)
    sized = build_model_spec("teacher", {"name": "resnet8", "image_size": 8}, None)
    exported = open_artifact_teacher(write_linear(tmp_path, GRAY, ("a", "b")))
    assert [needs_image_stats(each) for each in (plain, folder, hub, sized, exported)] == [
        True,
        False,
        False,
        True,
        False,
    ]
    for members, expected in (([folder, folder], False), ([folder, plain], True)):
        named = {str(number): member for number, member in enumerate(members)}
        ensemble = TeacherEnsemble(named, dict.fromkeys(named, 1.0), "mean")
        assert needs_image_stats(ensemble) is expected


def test_a_model_decodes_files_as_its_folder_or_its_file_records(tmp_path: Path) -> None:
    plain = build_weights_spec(tmp_path)
    folder = build_model_spec("teacher", {"checkpoint": tmp_path / "saved"}, None)
    assert choose_model_decoding(plain) is None
    assert choose_model_decoding(folder) == Decoding(1, 320)
    record_decoding(tmp_path / "saved", describe_decoding(Decoding(3, 77)))
    assert choose_model_decoding(folder) == Decoding(3, 77)
    file = write_linear(tmp_path, GRAY, ("a", "b"), decoding=Decoding(3, 48))
    assert choose_model_decoding(open_artifact_teacher(file)) == open_artifact(file).decoding


def test_a_corrupt_decoding_is_refused(tmp_path: Path) -> None:
    assert read_decoding(tmp_path) is None
    folder = teacher_folder(tmp_path / "saved")
    assert read_decoding(folder) is None
    record_decoding(folder, {"channels": 1})
    with pytest.raises(RequestError, match="does not say how to decode images as kd_app does"):
        read_decoding(folder)


@pytest.mark.parametrize(
    ("data", "decoding", "expected"),
    [
        ("folder", Decoding(1, 320), 1),
        ("folder", Decoding(3, 320), 3),
        ("folder", Decoding(12, 320), 3),
        ("folder", None, 3),
        ("csv", Decoding(1, 320), 1),
        ("digits", Decoding(3, 320), None),
    ],
)
def test_the_models_decide_the_channels_of_files(
    data: str, decoding: Decoding | None, expected: int | None
) -> None:
    node = compose_config("evaluate", ["model=a", "out=b", f"data={data}"])["data"]
    adapted = set_channels(node, decoding)
    assert adapted["source"].get("channels") == expected
    assert len(describe_conversion(node, adapted)) == (expected == 1)
