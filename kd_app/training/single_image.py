"""Training batches of one image, which most BatchNorm layers can't normalize."""

import torch
from torch import nn

from kd_app.config import InputSpec, RequestError, RunError
from kd_app.config.errors import take_first_line


def check_single_image(model: nn.Module, input_spec: InputSpec, role: str) -> None:
    """Raise `RequestError` if the model, which changes, can't be trained on a batch of
    one image.
    """
    image = torch.rand(1, input_spec.channels, input_spec.height, input_spec.width)
    with torch.no_grad():
        try:
            model.train()(image)
        except ValueError as error:
            if failure := build_single_image_error(error, role):
                raise failure from None
            raise


def build_single_image_error(
    error: Exception, role: str, *, is_started: bool = False
) -> RequestError | RunError | None:
    """Return the error for a batch of one image that a BatchNorm layer can't normalize;
    None for another error. is_started: the training has taken steps.
    """
    if "more than 1 value per channel when training" not in str(error):
        return None
    message = (
        f"A training batch has one image, and a BatchNorm layer of the {role} needs at least two"
        f" values per channel ({take_first_line(error)}). Set data.batch_size to 2 or more; for a"
        " loader of your own, set drop_last=True or another batch size, or choose a larger image"
        " size or a model without BatchNorm."
    )
    return RunError(message) if is_started else RequestError(message)
