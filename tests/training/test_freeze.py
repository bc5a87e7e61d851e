"""Frozen parts of a student, from their names to a training that leaves them alone."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import kd_app.models.small  # noqa: F401
from kd_app.config import RequestError
from kd_app.models.create import create
from kd_app.training.freeze import fix_frozen_modes, freeze_layers
from tests.builders import DIGITS, GRAY, teacher_folder, train_student
from tests.models.test_spec import request
from tests.training.small_parts import Net


def list_trained(student: nn.Module) -> set[str]:
    return {name for name, each in student.named_parameters() if each.requires_grad}


@pytest.mark.parametrize("name", ["resnet8", "test_vit", "test_efficientnet"])
def test_the_backbone_is_all_but_the_classifier(name: str) -> None:
    student = timm.create_model(name, num_classes=3)
    freeze_layers(student, ["backbone"])
    classifier: nn.Module = student.get_classifier()  # type: ignore[operator]
    head = {id(each) for each in classifier.parameters()}
    expected = {name for name, each in student.named_parameters() if id(each) in head}
    assert list_trained(student) == expected


def test_a_module_without_a_classifier_method_has_its_last_linear_layer_as_the_head() -> None:
    student = Net()
    freeze_layers(student, ["backbone"])
    assert list_trained(student) == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("names", "trained_names"),
    [
        ([], {"conv.weight", "conv.bias", "norm.weight", "norm.bias", "head.weight", "head.bias"}),
        (["conv"], {"norm.weight", "norm.bias", "head.weight", "head.bias"}),
        (["conv", "norm.bias"], {"norm.weight", "head.weight", "head.bias"}),
        (["*.bias", "[cn]o*"], {"head.weight"}),
    ],
)
def test_names_are_modules_parameters_or_patterns(
    names: list[str], trained_names: set[str]
) -> None:
    student = Net()
    freeze_layers(student, names)
    assert list_trained(student) == trained_names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["conf"],
            r"student.freeze=conf matches no .*Did you mean 'conv'\? Expected: backbone",
        ),
        (["conv", "norm", "head"], "freezes the whole student"),
        (["*"], "freezes the whole student"),
    ],
)
def test_names_that_freeze_nothing_or_all_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        freeze_layers(Net(), names)


def test_frozen_modules_keep_their_statistics() -> None:
    student = Net(drop=0.5).train()
    fix_frozen_modes(student)
    assert student.norm.training
    freeze_layers(student, ["backbone"])
    fix_frozen_modes(student)
    assert (student.training, student.norm.training, student.head.training) == (True, False, True)


def test_a_training_leaves_frozen_parts_and_statistics_alone(tmp_path: Path) -> None:
    run = train_student(
        teacher_folder(tmp_path / "teacher"),
        tmp_path,
        "data.batch_size=256",
        "trainer.max_epochs=2",
        "student.name=resnet8",
        "student.freeze=backbone",
        "optimizer.layer_decay=0.5",
    )
    start = create(request(name="resnet8", pretrained=False), GRAY, len(DIGITS), seed=0).model
    end = run.member.loaded.model.state_dict()
    changed = {
        name for name, value in start.state_dict().items() if not torch.equal(value, end[name])
    }
    assert changed == {"fc.weight", "fc.bias"}
