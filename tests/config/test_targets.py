"""Names of code in a configuration."""

from typing import Any

import pytest

from kd_app.config import RequestError
from kd_app.config.targets import resolve_target
from kd_app.losses.soft_target import SoftTarget


def test_a_name_is_resolved_to_its_object() -> None:
    assert resolve_target("loss.x", "kd_app.losses.soft_target.SoftTarget") is SoftTarget


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (None, "data._target_=None is not a name"),
        (
            "kd_app.nowhere.X",
            "'kd_app.nowhere.X' does not exist: module 'kd_app' has no",
        ),
        ("kd_app.config.Nothing", "does not exist: .*has no attribute 'Nothing'"),
    ],
)
def test_a_wrong_name_is_refused(target: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        resolve_target("data", target)
