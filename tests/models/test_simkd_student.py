"""The SimKD student: its logits, its files, and invalid configs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from kd_app.config import RequestError
from kd_app.models.cost import count_params
from kd_app.models.create import create, resolve_input
from kd_app.models.heads import Head
from kd_app.models.save import PROGRAM, save_model
from kd_app.models.simkd_student import Projector, SimKDStudent, find_linear_classifier
from kd_app.models.taps import Taps
from tests.builders import DIGITS, GRAY
from tests.models.test_create import STATS
from tests.models.test_spec import request

IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def student() -> SimKDStudent:
    backbone: Any = timm.create_model("resnet8", num_classes=10, in_chans=1)
    width = backbone.num_features
    return SimKDStudent(
        backbone, Projector(width, 6, 20, size=(1, 1), relu=True), nn.Linear(20, 10)
    ).eval()


@pytest.fixture(scope="module")
def model_folder(student: SimKDStudent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the saved student; nobody writes there."""
    folder = tmp_path_factory.mktemp("student")
    save_model(student, folder, pixels=GRAY, classes=DIGITS, license="mit")
    return folder


def test_logits_are_the_classifier_of_the_projected_map(student: SimKDStudent) -> None:
    read = Taps(student, frozenset({"logits", "embedding", "features"}))(IMAGES)
    assert read.embedding is not None
    torch.testing.assert_close(read.embedding, student.projector(read.features[-1]).mean((2, 3)))
    torch.testing.assert_close(
        student(IMAGES), read.embedding @ student.classifier.weight.T + student.classifier.bias
    )


def test_projector_and_classifier_count_and_only_the_classifier_is_frozen(
    student: SimKDStudent,
) -> None:
    assert (
        count_params(student)
        == count_params(student.backbone) + count_params(student.projector) + 20 * 10 + 10
    )
    assert not any(
        isinstance(module, nn.Linear) for module in student.backbone.modules()
    )  # its own classifier is gone
    assert [name for name, p in student.named_parameters() if not p.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]


def test_a_saved_student_loads_unchanged_and_as_a_program(
    student: SimKDStudent, model_folder: Path
) -> None:
    spec = request(checkpoint=model_folder)
    again = create(spec, resolve_input(spec, STATS), 10, seed=0).model
    torch.testing.assert_close(again(IMAGES), student(IMAGES))
    torch.testing.assert_close(
        torch.export.load(model_folder / PROGRAM).module()(IMAGES), student(IMAGES)
    )
    assert set(load_file(model_folder / "model.safetensors")) == set(student.state_dict())
    larger = create(spec, resolve_input(spec, STATS), 12, seed=0)
    assert larger.weights.new_head
    assert larger.model(IMAGES).shape == (3, 12)


@pytest.mark.parametrize(
    "wrong", [{"inside": 10**6}, {"out": 7}, {"channels": "many"}, {"more": 1}]
)
def test_a_config_that_does_not_match_the_weights_is_refused(
    model_folder: Path, tmp_path: Path, wrong: dict[str, object]
) -> None:
    shutil.copytree(model_folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["reused"] |= wrong
    path.write_text(json.dumps(config))
    spec = request(checkpoint=tmp_path)
    with pytest.raises(RequestError, match="'reused'"):
        create(spec, resolve_input(spec, STATS), 10, seed=0)


def test_a_classifier_of_1x1_convolution_is_a_linear_map_and_two_heads_are_none() -> None:
    conv, x = nn.Conv2d(5, 3, 1), torch.randn(2, 5)
    head = Head((conv,), (5,), convolutional=True)
    linear = find_linear_classifier(head)
    assert linear is not None
    torch.testing.assert_close(linear(x), head(x))
    assert (
        find_linear_classifier(
            Head((nn.Linear(5, 3), nn.Linear(5, 3)), (5, 5), convolutional=False)
        )
        is None
    )
