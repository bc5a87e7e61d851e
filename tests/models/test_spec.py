"""Model specs: errors by name, before anything is built, read or fetched."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from kd_app.config import RequestError
from kd_app.models.class_names import ClassMatch, ModelClasses
from kd_app.models.create import create
from kd_app.models.save import save_model
from kd_app.models.spec import ModelSpec, suggest_pretrained_tag
from kd_app.specs.model_specs import parse_model
from tests.builders import GRAY, teacher_folder


def request(**settings: Any) -> ModelSpec:
    defaults: dict[str, Any] = {
        "role": "student",
        "name": None,
        "pretrained": "auto",
        "checkpoint": None,
        "kwargs": {},
        "image_size": None,
        "factory": None,
    }
    return ModelSpec(**{**defaults, **settings})


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"name": "resnet18"}, "random"),
        ({"name": "resnet8"}, "random"),
        ({"name": "resnet18.a1_in1k"}, "hub"),
        ({"name": "resnet18.a1_in1k", "pretrained": False}, "random"),
        ({"name": "resnet18", "pretrained": True}, "hub"),
        ({"name": "resnet18", "checkpoint": Path("weights.pth")}, "file"),
        ({"name": "hf-hub:timm/resnet18.a1_in1k"}, "hub"),
    ],
)
def test_where_the_weights_come_from(settings: dict[str, Any], kind: str) -> None:
    origin = request(**settings).origin
    assert origin.kind == kind
    assert origin.has_weights == (kind != "random")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "No student is named. Set student.name="),
        ({"name": "resnet19"}, "There is no student model 'resnet19'. Did you mean 'resnet1"),
        (
            {"name": "resnet18.a9_in1k"},
            (
                "There is no tag of student model resnet18 'resnet18.a9_in1k'. Did you mean"
                " 'resnet18.a"
            ),
        ),
        (
            {"name": "resnet8", "pretrained": True},
            "timm has no weights for 'resnet8'. Use student.pretrained=false",
        ),
        (
            {"name": "resnet18", "kwargs": {"blok_size": 2}},
            r"student.kwargs=\{'blok_size': 2\} do not fit resnet18: .*blok_size",
        ),
        (
            {"name": "resnet18", "kwargs": {"blok_size": 2}, "checkpoint": Path("x.pth")},
            r"student.kwargs=.* do not fit resnet18: .*blok_size",
        ),
        (
            {"name": "resnet18", "kwargs": {"num_classes": 3}},
            "student.kwargs.num_classes=3 can't be set",
        ),
        (
            {"name": "resnet18", "kwargs": {"checkpoint_path": "x.pth"}},
            "checkpoint_path='x.pth' can't be set: the value comes from student.checkpoint",
        ),
        (
            {"name": "resnet18", "kwargs": {"pretrained": True}},
            "the value comes from student.pretrained",
        ),
        ({"name": "local-dir:nowhere"}, "'nowhere' is not a model folder for the student"),
        ({"name": "resnet18", "image_size": 0}, "image_size=0 does not fit"),
        ({"name": "resnet18", "pretrained": "maybe"}, "pretrained.*'maybe' does not fit"),
    ],
)
def test_a_wrong_spec_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        request(**settings)


def test_a_spec_builds_no_weights_and_draws_no_random_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    monkeypatch.setattr(
        "torch.hub.load_state_dict_from_url", lambda *_, **__: pytest.fail("fetched")
    )
    request(name="vit_huge_patch14_224", kwargs={"img_size": 112})
    assert torch.equal(torch.get_rng_state(), state)


def test_a_folder_brings_its_name_classes_and_license(tmp_path: Path) -> None:
    folder = teacher_folder(tmp_path / "model", classes=("cat", "dog", "eel"))
    for settings in ({"name": f"local-dir:{folder}"}, {"checkpoint": folder, "name": "resnet18"}):
        origin = request(**settings).origin
        assert (origin.kind, origin.name, origin.num_classes, origin.label_names) == (
            "folder",
            "resnet8",
            3,
            ("cat", "dog", "eel"),
        )
        assert origin.license == "none"


def test_the_folder_of_a_run_is_its_student(tmp_path: Path) -> None:
    teacher_folder(tmp_path / "student")
    (tmp_path / "results.json").write_text("{}")
    assert request(checkpoint=tmp_path).origin.path == tmp_path / "student"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"architecture": "resnet8"}',
        '{"architecture": "resnet8", "num_classes": 3, "pretrained_cfg": 1}',
    ],
)
def test_a_folder_with_another_config_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RequestError, match="is not a model folder for the teacher"):
        request(role="teacher", checkpoint=tmp_path)


def test_a_folder_of_a_module_that_timm_does_not_know_needs_its_factory(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    save_model(nn.Linear(2, 3), folder, pixels=GRAY, classes=("a", "b", "c"), license="none")
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(
        RequestError,
        match=r"is a Linear, which timm does not know.*Name the factory with student._target_",
    ):
        request(checkpoint=tmp_path)
    assert (
        request(checkpoint=tmp_path, factory=nn.Linear).origin.path == folder / "model.safetensors"
    )


def test_weights_are_bound_to_classes_by_name(tmp_path: Path) -> None:
    named = request(checkpoint=teacher_folder(tmp_path / "named", classes=("cat", "dog")))
    assert named.bind_classes(("cat", "dog")) == ClassMatch(fits=True)
    assert named.bind_classes(("dog", "cat")).rows == (1, 0)
    assert not named.bind_classes(("cat", "dog", "eel")).fits
    config = json.loads((tmp_path / "named" / "config.json").read_text())
    del config["label_names"]
    (tmp_path / "named" / "config.json").write_text(json.dumps(config))
    assert request(checkpoint=tmp_path / "named").bind_classes(("dog", "cat")).fits


def test_a_measured_order_of_the_classes_overrides_their_number(tmp_path: Path) -> None:
    state = timm.create_model("resnet8", num_classes=3, in_chans=1).state_dict()
    torch.save(state, tmp_path / "x.pth")
    spec = request(name="resnet8", checkpoint=tmp_path / "x.pth", class_order=(2, 0, 1))
    assert spec.bind_classes(("a", "b", "c")).rows == (2, 0, 1)
    model = create(spec, GRAY, 3, seed=0)
    assert torch.equal(model.model.state_dict()["fc.weight"], state["fc.weight"][[2, 0, 1]])
    assert "in another order" in model.weights.notes[0]
    again = parse_model(spec.to_json())
    assert again.bind_classes(("a", "b", "c")).rows == (2, 0, 1)
    assert create(again, GRAY, 3, seed=0).weights.sha256 == model.weights.sha256


def test_a_file_has_as_many_classes_as_its_classifier_has_rows(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet", num_classes=12).state_dict()
    names = [str(number) for number in range(12)]
    torch.save({"state_dict": state, "classes": names}, tmp_path / "named.pth")
    torch.save({"state_dict": state, "classes": names[:3]}, tmp_path / "other.pth")
    torch.save({k: v for k, v in state.items() if "fc" not in k}, tmp_path / "body.pth")
    classes = {
        name: request(name="test_resnet", checkpoint=tmp_path / f"{name}.pth").record.classes
        for name in ("named", "other", "body")
    }
    assert classes == {
        "named": ModelClasses(12, tuple(names)),
        "other": ModelClasses(12),
        "body": ModelClasses(),
    }


def test_imagenet_weights_fit_its_classes_alone(tmp_path: Path) -> None:
    anything = tuple(f"class{number}" for number in range(1000))
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "x.pth")
    for spec in (
        request(name="resnet18.a1_in1k"),
        request(name="test_resnet", checkpoint=tmp_path / "x.pth"),
    ):
        assert not spec.bind_classes(("cat", "dog")).fits
        assert not spec.bind_classes(anything).fits
        assert spec.bind_classes(("n01443537", "n01440764")).rows == (1, 0)
        assert spec.bind_classes(("goldfish", "tench")).rows == (1, 0)
    assert not request(name="resnet18").bind_classes(("cat", "dog")).fits


def test_a_factory_is_a_source_with_a_name() -> None:
    def factory(num_classes: int) -> nn.Module:
        return nn.Linear(2, num_classes)

    assert request(factory=factory).origin.kind == "own"
    assert request(factory=factory, pretrained=False).origin.kind == "random"
    assert request(factory=factory, checkpoint=Path("x.pth")).origin.kind == "file"
    assert "factory" in request(factory=factory).name


def test_a_suggested_tag_exists_in_timm() -> None:
    assert suggest_pretrained_tag("resnet18") == ", for example resnet18.a1_in1k"
    assert suggest_pretrained_tag("resnet8") == ""
    assert suggest_pretrained_tag("no_such_net") == ""


@pytest.mark.parametrize(
    "entries",
    [
        {"label_names": {"2": "2", "3": "10", "0": "0", "1": "1"}},
        {"label_names": {"10": 3, "0": 0, "2": 2, "1": 1}},
        {"id2label": {"2": "2", "3": "10", "0": "0", "1": "1"}, "label_names": None},
    ],
)
def test_class_names_by_number_are_read_in_the_order_of_the_outputs(
    entries: dict[str, Any], tmp_path: Path
) -> None:
    folder = teacher_folder(tmp_path / "model", classes=("0", "1", "2", "10"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))
    spec = request(checkpoint=folder)
    assert spec.origin.label_names == ("0", "1", "2", "10")
    assert spec.bind_classes(("0", "1", "10", "2")).rows == (0, 1, 3, 2)


def test_names_of_another_number_than_the_outputs_are_noted_and_not_used(tmp_path: Path) -> None:
    folder = teacher_folder(tmp_path / "model", classes=("a", "b", "c"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "label_names": ["b", "a"]}))
    match = request(checkpoint=folder).bind_classes(("a", "b", "c"))
    assert match.rows is None
    assert "records 2 class names for its 3 outputs" in match.note


def test_a_checkpoint_whose_name_is_too_long_is_refused() -> None:
    with pytest.raises(RequestError, match=r"teacher\.checkpoint='xxx.* can't be looked at: File"):
        ModelSpec(
            role="teacher",
            name="resnet18",
            pretrained="auto",
            checkpoint=Path("x" * 300),
            kwargs={},
            image_size=None,
            factory=None,
        )
