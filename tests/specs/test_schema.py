"""Settings that are refused before anything is read."""

from typing import Any

import pytest

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.specs.control_choice import resolve_controls
from kd_app.specs.loss_choice import resolve_loss
from kd_app.specs.schema import (
    DistillSettings,
    EnsembleSettings,
    Licensing,
    check_assistant,
)


def validate(*overrides: str, **changes: Any) -> None:
    config = compose_config("distill", list(overrides))
    config = resolve_loss(resolve_controls(config)).config
    DistillSettings(**{**config, **changes})


def test_the_default_configuration_is_valid() -> None:
    validate()
    validate("teacher=none", "loss=[cross_entropy]", "controls=[]")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed=-1"),
        ("examples=2000", "examples=2000"),
        ("test=sometimes", "'auto', 'always' or 'never'"),
        ("loss.soft_target=null", "loss.soft_target=None is not a component"),
        ("+student.nam=resnet8", "Did you mean 'student.name'"),
        ("+teacher.temperature=2", "teacher.temperature"),
        ("remake=[studnt]", "Did you mean 'student'"),
        ("remake=[link-1]", "link-1"),
    ],
)
def test_an_invalid_setting_is_named(override: str, message: str) -> None:
    with pytest.raises(RequestError, match=message.replace("?", r"\?")):
        validate(override)


def test_the_stages_of_assistants_controls_and_outputs_can_be_remade() -> None:
    stages = "link-2,answers-teacher-test,corrupted-labels_only-validation,epochs-labels_only"
    validate("teacher.chain=[resnet14,resnet8]", f"remake=[{stages}]", "controls=[labels_only]")


def test_the_training_that_labels_images_can_be_repeated() -> None:
    few = ("data.label_fraction=0.1", "controls=[pseudo_labels]")
    validate("remake=[labels_only,labels-pseudo_labels,answers-labels_only-train]", *few)
    with pytest.raises(RequestError, match="labels_only"):
        validate("remake=[labels_only]", "controls=[]")


@pytest.mark.parametrize(
    ("name", "message"), [("a-b", "letters, digits and underscores"), ("teacher", "another key")]
)
def test_a_control_needs_a_name_of_its_own(name: str, message: str) -> None:
    control = {"loss": {"cross_entropy": {"weight": 1.0}}}
    with pytest.raises(RequestError, match=message):
        validate(controls={name: control})


def test_a_control_that_chooses_its_model_needs_candidates() -> None:
    control = {"loss": {}, "student": {"name": "auto", "candidates": {}}}
    with pytest.raises(RequestError, match="the models to choose from"):
        validate(controls={"other": control})


def test_the_members_of_an_ensemble_weigh_one_by_default() -> None:
    members: dict[str, Any] = {"a": {"name": "resnet8", "weight": 2.0}, "b": {"name": "resnet14"}}
    ensemble = EnsembleSettings(members=members, by="mean", classes=None)
    assert ensemble.weights == {"a": 2.0, "b": 1.0}
    assert ensemble.members == {"a": {"name": "resnet8"}, "b": {"name": "resnet14"}}


def test_an_ensemble_has_two_members_with_positive_weights() -> None:
    with pytest.raises(RequestError, match="holds 1 teachers, expected 2 or more"):
        EnsembleSettings(members={"a": {"name": "resnet8"}}, by="mean", classes=None)
    members: dict[str, Any] = {"a": {"name": "resnet8", "weight": 0}, "b": {"name": "resnet14"}}
    with pytest.raises(RequestError, match="weight=0"):
        EnsembleSettings(members=members, by="mean", classes=None)


def test_an_assistant_has_the_keys_of_a_model() -> None:
    check_assistant({"name": "resnet14", "kwargs": {}})
    with pytest.raises(RequestError, match=r"teacher\.chain"):
        check_assistant({"license": "mit"})


def test_licenses_are_judged_by_the_default_policy() -> None:
    settings = Licensing(accept=["cc-by-nc-4.0"], policy=None)
    assert settings.accept == ["cc-by-nc-4.0"]
    assert settings.policy.normalize_name("MIT") == "mit"
