"""Objects built from plain configuration."""

from functools import partial
from typing import Any

import pytest

from kd_app.config import RequestError
from kd_app.config.make import make


class Part:
    """A part that keeps its arguments."""

    def __init__(self, *args: Any, **values: Any) -> None:
        if "error" in values:
            raise KeyError(values["error"])
        self.args, self.values = args, values


NAME = f"{__name__}.Part"


def build(**values: Any) -> Part:
    part: Part = make({"_target_": NAME, **values}, Part)
    return part


def test_values_are_literal_and_nested_parts_are_built() -> None:
    inner = {"_target_": NAME, "deep": 1}
    part = build(text="${oc.env:HOME}", missing="???", parts={"a": [inner]}, _convert_="all")
    assert part.values["text"] == "${oc.env:HOME}"
    assert part.values["missing"] == "???"
    assert part.values["parts"]["a"][0].values == {"deep": 1}
    assert "_convert_" not in part.values


def test_the_keys_of_hydra_keep_their_meaning() -> None:
    inner = {"_target_": NAME, "deep": 1}
    part = build(_args_=[inner, 2], lazy={**inner, "_partial_": True})
    assert part.args[0].values == {"deep": 1}
    assert part.args[1] == 2
    assert isinstance(part.values["lazy"], partial)
    assert part.values["lazy"]().values == {"deep": 1}
    assert build(_recursive_=False, node=inner).values == {"node": inner}


def test_more_values_are_added() -> None:
    assert make({"_target_": NAME, "a": 1}, Part, b=2).values == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (None, "No Part can be built from None: it has no _target_"),
        ({"_target_": None}, "it has no _target_"),
        ({"_target_": NAME, "_partial_": "x"}, "_partial_ flag must be a bool, got 'x'"),
        ({"_target_": NAME, "error": "boom"}, r"Part can't be built: 'boom'. The settings are"),
        (
            {"_target_": "kd_app.nowhere.X"},
            r"can't be built: module 'kd_app' has no attribute 'nowhere'",
        ),
        ({"_target_": "kd_app.config"}, "is not a class or function"),
        ({"_target_": "builtins.dict"}, "builtins.dict is a dict, expected a Part"),
    ],
)
def test_what_cant_be_built_is_refused(node: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make(node, Part)
