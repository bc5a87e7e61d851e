"""Models that can't be trained on a batch of one image."""

import pytest
import timm

import kd_app.models.small  # noqa: F401
from kd_app.config import InputSpec, RequestError, RunError
from kd_app.training.single_image import build_single_image_error, check_single_image

PIXELS = InputSpec(3, 8, 8, (0.5,) * 3, (0.5,) * 3, 1.0, "bilinear")


def test_only_a_model_that_fails_with_one_image_is_refused() -> None:
    pooled = timm.create_model("mobilenetv3_small_050", num_classes=3)
    message = "A training batch has one image, and a BatchNorm layer of the student"
    with pytest.raises(RequestError, match=message):
        check_single_image(pooled, PIXELS, "student")
    # maps of 2x2, and no BatchNorm
    for model in (
        timm.create_model("resnet8"),
        timm.create_model("test_vit", img_size=8, patch_size=4),
    ):
        check_single_image(model, PIXELS, "student")


def test_another_failure_has_no_such_explanation() -> None:
    assert build_single_image_error(ValueError("Expected more images"), "teacher") is None


def test_after_the_first_step_the_run_has_failed() -> None:
    error = ValueError("Expected more than 1 value per channel when training")
    assert isinstance(build_single_image_error(error, "student", is_started=True), RunError)
    assert isinstance(build_single_image_error(error, "student"), RequestError)
