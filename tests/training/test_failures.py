"""Which error of a training is a refusal, and which a failed run."""

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback

from kd_app.config import RequestError, RunError
from kd_app.training.failures import explain_failures


class Faulty(Callback):
    """A user's callback with a fault."""

    def on_train_start(self, *_: Any) -> None:
        raise KeyError("speed")


SINGLE_IMAGE = ValueError("Expected more than 1 value per channel when training, got [1, 8]")


@pytest.mark.parametrize(
    ("error", "step", "kind"),
    [
        (RequestError("a bad target"), 4, RequestError),
        (RequestError("a bad target"), 5, RunError),
        (RunError("nan"), 5, RunError),
        (SINGLE_IMAGE, 4, RequestError),
        (SINGLE_IMAGE, 5, RunError),
        (RuntimeError("CUDA error"), 5, RuntimeError),
    ],
)
def test_after_a_step_nothing_is_refused(
    error: Exception, step: int, kind: type[Exception]
) -> None:
    with (
        pytest.raises(Exception) as raised,  # noqa: PT011
        explain_failures(SimpleNamespace(global_step=step), "student", {}, first_step=4),
    ):
        raise error
    assert type(raised.value) is kind


def test_a_callback_of_the_user_is_named() -> None:
    callback = Faulty()
    with (
        pytest.raises(RunError, match=r"The callback mine \(Faulty\) failed in on_train_start"),
        explain_failures(
            SimpleNamespace(global_step=0), "student", {"mine": callback}, first_step=0
        ),
    ):
        callback.on_train_start()
