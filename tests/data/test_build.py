"""Tests of building data from the data group of a configuration."""

from typing import Any

import pytest

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.data.build import build_data
from kd_app.data.external import ExternalDataModule
from kd_app.data.module import OPTIONS, ImageData, find_active_options
from tests.training.small_parts import OwnData

OWN = "data._target_=tests.training.small_parts.OwnData"


def data_group(*overrides: str) -> dict[str, Any]:
    return dict(compose_config("distill", ["data=digits", *overrides])["data"])


def test_the_view_node_is_part_of_the_identity() -> None:
    node = data_group("data.views=2")
    data = build_data(node)
    assert isinstance(data, ImageData)
    assert data.describe_identity(for_teacher=False) == {
        "view": node["view"],
        "batch_size": node["batch_size"],
        "views": 2,
    }
    assert data.name is None


def test_an_external_module_receives_the_settings_that_it_accepts() -> None:
    data = build_data(data_group(OWN, "data.batch_size=10", "+data.images=50"))
    assert isinstance(data, ExternalDataModule)
    assert isinstance(data.module, OwnData)
    assert (data.batch_size, data.name) == (10, "OwnData")


def test_an_object_replaces_the_configured_module() -> None:
    module = OwnData()
    data = build_data(data_group(), module)
    assert isinstance(data, ExternalDataModule)
    assert data.module is module


def test_all_options_are_off_in_the_shipped_configurations() -> None:
    for name in ("digits", "folder", "csv", "timm", "fashion_mnist"):
        node = compose_config("distill", [f"data={name}", "data.root=x"])["data"]
        assert set(OPTIONS) <= set(node)
        assert find_active_options(node) == {}


@pytest.mark.parametrize(
    "override",
    [
        "data.views=2",
        "data.label_fraction=0.5",
        "data.unlabeled=more",
        "data.mix.cutmix=1.0",
        "data.augment.erasing=0.5",
    ],
)
def test_an_option_unknown_to_an_external_module_is_refused(override: str) -> None:
    key = override.removeprefix("data.").partition("=")[0].partition(".")[0]
    node = data_group(OWN, override)
    assert set(find_active_options(node)) == {key}
    message = rf"data\.{key}=.* needs images that kd_app decodes.* or leave data\.{key} out"
    with pytest.raises(RequestError, match=message):
        build_data(node)
    with pytest.raises(RequestError, match=message):
        build_data(data_group(override), OwnData())
