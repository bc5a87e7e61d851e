"""The failures of a training, as errors for users."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.callbacks import Callback

from kd_app.config import RequestError, RunError
from kd_app.training.callback_rules import explain_callback_error
from kd_app.training.single_image import build_single_image_error


@contextmanager
def explain_failures(
    trainer: Any, role: str, callbacks: Mapping[str, Callback], *, first_step: int
) -> Iterator[None]:
    """Raise the error for users in place of an error of the body, a training.

    After a step, no error is a `RequestError`, because a refusal would undo the work.
    callbacks: those of the recipe. first_step: number of the step before the training.
    """
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        is_started = trainer.global_step > first_step
        failure = (
            error
            if isinstance(error, RequestError)
            else explain_callback_error(error, callbacks) or build_single_image_error(error, role)
        )
        if failure is None:
            raise
        if is_started and isinstance(failure, RequestError):
            failure = RunError(str(failure))
        if failure is error:
            raise
        raise failure from error
