"""A step has no details and changes no order, unless its class says so."""

from typing import Any

import pytest

from kd_app.compression.finetune import Finetune
from kd_app.compression.prune import Prune
from kd_app.compression.quantize import Quantize
from kd_app.compression.step import Step


class Copy(Step):
    """A step that changes nothing."""

    def __init__(self) -> None:
        pass

    def take(self, name: str, workspace: Any, student: Any, teacher: Any) -> Any:
        return student


def test_a_step_has_no_details_by_default() -> None:
    model: Any = object()
    assert Copy().describe(model) == {}
    assert Copy().take("copy", None, model, None) is model


@pytest.mark.parametrize(
    ("step", "recovers", "is_final"),
    [
        (Copy, False, False),
        (Prune, False, False),
        (Finetune, True, False),
        (Quantize, False, True),
    ],
)
def test_only_finetune_recovers_and_only_quantize_is_final(
    step: type[Step], recovers: bool, is_final: bool
) -> None:
    assert (step.recovers, step.is_final) == (recovers, is_final)
