"""The failures of a training, as errors for users."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.callbacks import Callback

from kd_app.callbacks.rules import explain_callback_error
from kd_app.config import RequestError, RunError
from kd_app.config.own_code import describe_own_error
from kd_app.training.single_image import build_single_image_error


@contextmanager
def explain_failures(
    trainer: Any, callbacks: Mapping[str, Callback], role: str, *, first_step: int
) -> Iterator[None]:
    """Raise the error for users in place of an error of the body, a training: for a
    failure of a callback or of other code of the user, and for a batch of one image.

    After a step, no error is a `RequestError`, because a refusal would undo the work.
    callbacks: those of the recipe. role: of the model. first_step: number of the step
    before the training.
    """
    try:
        yield
    except RunError:
        raise
    except (Exception, SystemExit) as error:
        failure = _explain_failure(error, callbacks, role)
        if isinstance(failure, RequestError) and trainer.global_step > first_step:
            failure = RunError(str(failure))
        if failure is None or failure is error:
            raise
        raise failure from error


def _explain_failure(
    error: Exception | SystemExit, callbacks: Mapping[str, Callback], role: str
) -> Exception | None:
    if isinstance(error, RequestError):
        return error
    failure: Exception | None = explain_callback_error(error, callbacks)
    if failure is None and isinstance(error, Exception):
        failure = build_single_image_error(error, role)
    if failure is None and (own := describe_own_error(error)):
        failure = RunError(f"{own} The training so far is saved.")
    return failure
