"""Model specs from nodes of the configuration."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kd_app.config import RequestError
from kd_app.models.composite import ClassMappedTeacher, TeacherEnsemble
from kd_app.specs.model_specs import (
    build_composite,
    build_model_spec,
    parse_assistants,
    parse_model,
)
from tests.builders import DIGITS, teacher_folder
from tests.training.small_parts import Net

NODE = {"_target_": "timm.create_model", "name": "resnet8", "pretrained": "auto"}


def test_a_node_without_settings_is_a_model_with_the_defaults() -> None:
    spec = build_model_spec("student", {"name": "resnet8"}, None)
    assert (spec.role, spec.name, spec.kwargs, spec.factory) == ("student", "resnet8", {}, None)
    assert not spec.origin.has_weights


def test_a_module_from_python_is_copied_each_time() -> None:
    module: Any = Net()
    spec = build_model_spec("student", {"kwargs": {"x": 1}}, module)
    assert spec.kwargs == {}
    assert spec.factory is not None
    first: Any = spec.factory()
    second: Any = spec.factory()
    assert first is not second
    assert torch.equal(first.conv.weight, module.conv.weight)


def test_a_spec_is_parsed_from_its_own_json() -> None:
    spec = build_model_spec("teacher", {**NODE, "kwargs": {"drop_rate": 0.1}}, None)
    again = parse_model(spec.to_json())
    assert again.to_json() == spec.to_json()
    assert again.kwargs == {"drop_rate": 0.1}


def test_assistants_are_names_or_nodes_with_seeds_that_follow_the_teachers() -> None:
    node = {"seed": 4, "chain": ["resnet14", {"name": "resnet8", "kwargs": {"drop_rate": 0.5}}]}
    first, second = parse_assistants(node)
    assert (first.spec.name, first.seed) == ("resnet14", 5)
    assert (second.spec.kwargs, second.seed) == ({"drop_rate": 0.5}, 6)
    assert parse_assistants(None) == parse_assistants({"chain": None}) == ()


def test_a_single_model_of_the_datas_classes_is_not_composite() -> None:
    assert build_composite(NODE) is None


def test_members_are_an_ensemble(tmp_path: Path) -> None:
    members = {
        "a": {"checkpoint": teacher_folder(tmp_path / "a"), "weight": 3},
        "b": {"name": "resnet8"},
    }
    ensemble = build_composite({"members": members, "by": "confidence", "classes": None})
    assert isinstance(ensemble, TeacherEnsemble)
    assert list(ensemble.members) == ["a", "b"]
    assert ensemble.members["a"].origin.has_weights


def test_a_map_of_classes_needs_a_teacher_with_weights(tmp_path: Path) -> None:
    rows = "teacher,class\n" + "".join(f"{digit},{digit}\n" for digit in DIGITS)
    (tmp_path / "map.csv").write_text(rows, encoding="utf-8")
    node = {**NODE, "classes": str(tmp_path / "map.csv")}
    with pytest.raises(RequestError, match="but resnet8 has random weights"):
        build_composite(node)
    weights = {"name": None, "checkpoint": teacher_folder(tmp_path / "teacher")}
    assert isinstance(build_composite({**node, **weights}), ClassMappedTeacher)


def test_a_file_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"teacher\.checkpoint"):
        build_composite({**NODE, "checkpoint": str(tmp_path / "model.onnx")})
