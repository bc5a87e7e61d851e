"""Numbers and texts that no setting has."""

from typing import Any

import pytest

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.config.values import check_values


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"data": {"batch_size": 10**20}}, "data.batch_size=1000+ is too large"),
        ({"a": [{"b": -(10**400)}]}, r"a.0.b=-10+\.*... is too large"),
        ({"optimizer": {"kwargs": {"eps": float("nan")}}}, "optimizer.kwargs.eps=nan is not a fin"),
        ({"a": (1.0, float("-inf"))}, "a.1=-inf is not a finite number"),
        ({"data": {"root": "K\udce4se"}}, "data.root='K.udce4se' is not valid UTF-8"),
    ],
)
def test_an_impossible_value_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_values(config)


def test_other_values_pass() -> None:
    check_values({"a": 2**63 - 1, "b": [1e300, True, None, "🐱 日本", {1: -(2**62)}]})


def test_every_configuration_is_checked() -> None:
    with pytest.raises(RequestError, match=r"seed=1.* is too large"):
        compose_config("distill", ["seed=100000000000000000000"])
