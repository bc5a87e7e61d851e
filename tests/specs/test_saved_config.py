"""Configurations of earlier versions, which lack newer settings."""

from copy import deepcopy
from typing import Any

from kd_app.config.compose import compose_config
from kd_app.specs.saved_config import fill_defaults


def test_settings_that_a_saved_configuration_lacks_get_their_defaults() -> None:
    config = compose_config("distill", ["data=folder", "data.root=x", "data.mix.mixup=0.3"])
    old: dict[str, Any] = deepcopy(config)
    for path in (
        ("data", "views"),
        ("data", "mix", "probability"),
        ("data", "source", "channels"),
        ("trainer", "on_nan"),
        ("verdict", "metric"),
        ("loss", "soft_target", "temperature"),
        ("teacher", "outputs"),
        ("examples",),
    ):
        node = old
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]
    assert old != config
    assert fill_defaults(old) == config


def test_other_parts_keep_what_they_have() -> None:
    for teacher in ("ema", "several"):
        config = compose_config("distill", [f"teacher={teacher}"])
        assert fill_defaults(config) == config
    config = compose_config("distill", ["teacher=none", "loss=[cross_entropy]", "controls=[]"])
    config["data"] = {"_target_": "my.Data", "name": "mine", "view": None}
    config["loss"]["own"] = {"_target_": "my.Loss"}
    assert fill_defaults(config) == config
    others: tuple[Any, ...] = (None, [], {"run": "a", "data": None})
    for other in others:
        assert fill_defaults(other) == other
