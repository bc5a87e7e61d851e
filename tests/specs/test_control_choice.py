"""The rule of ``controls=auto``: a pure function of the configuration."""

from typing import Any

import pytest

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.specs.control_choice import resolve_controls
from kd_app.specs.spec import build_spec


def resolve(*overrides: str) -> Any:
    return resolve_controls(compose_config("distill", list(overrides)))


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ([], ["labels_only", "pseudo_labels"]),
        (["data=digits"], ["labels_only"]),
        (["data=digits", "data.label_fraction=0.3"], ["labels_only", "pseudo_labels"]),
        (["data=digits", "data.label_fraction=1.0"], ["labels_only"]),
        (["data=folder", "data.root=x"], ["labels_only"]),
        (["data=folder", "data.root=x", "data.unlabeled=y"], ["labels_only", "pseudo_labels"]),
        (["controls=[labels_only]"], ["labels_only"]),
        (["data=digits", "controls=[auto,other_family]"], ["labels_only", "other_family"]),
        (["controls=[]"], []),
    ],
)
def test_pseudo_labels_are_a_control_where_images_have_no_label(
    overrides: list[str], names: list[str]
) -> None:
    assert list(resolve(*overrides)["controls"]) == names


def test_the_choice_equals_the_list_of_its_controls() -> None:
    listed = compose_config("distill", ["controls=[labels_only,pseudo_labels]"])
    assert resolve() == listed
    assert resolve_controls(listed) is listed


def test_settings_of_the_chosen_controls_are_kept() -> None:
    controls = resolve("controls.pseudo_labels.pseudo_label_confidence=0.5")["controls"]
    assert controls["pseudo_labels"]["pseudo_label_confidence"] == 0.5


def test_a_setting_of_the_control_that_is_left_out_is_refused() -> None:
    words = ["data=digits", "controls.pseudo_labels.pseudo_label_confidence=0.5"]
    with pytest.raises(RequestError, match=r"The control pseudo_labels needs training images"):
        build_spec(compose_config("distill", words))


@pytest.mark.parametrize("value", [-1, None, True, "x", [1], {"x": 1}, {"auto": False}])
def test_a_group_of_the_wrong_kind_is_left_to_the_validation(value: Any) -> None:
    config = compose_config("distill", [])
    assert resolve_controls({**config, "controls": value})["controls"] == value
