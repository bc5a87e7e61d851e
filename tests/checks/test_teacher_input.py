"""A teacher with another input than in its training is refused, and the message names
that input; a teacher with the right input has no findings.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kd_app.checks.context import CheckContext
from kd_app.checks.teacher_input import check_teacher_input
from kd_app.config import InputSpec
from tests.checks.planted import (
    Changed,
    build_context,
    fit_teacher,
    list_names,
    write_centered_photos,
    write_colored_photos,
)

IMAGENET = InputSpec(3, 16, 16, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos")
    write_colored_photos(path / "photos")
    return path


@pytest.fixture(scope="module")
def photos_with(folder: Path) -> Callable[[nn.Module | None], CheckContext]:
    """Build the context of a run on the photos with this teacher."""
    return lambda teacher: build_context(
        folder,
        "data=folder",
        f"data.root={folder / 'photos'}",
        "data.image_size=16",
        teacher=teacher,
    )


def test_a_teacher_with_the_input_of_its_training_has_no_findings(
    photos_with: Callable[[nn.Module | None], CheckContext],
) -> None:
    sound = photos_with(fit_teacher(photos_with(None)))
    assert sound.hits.mean() > 0.9
    assert not list_names(check_teacher_input(sound))


def test_classes_in_another_order_are_refused(
    photos_with: Callable[[nn.Module | None], CheckContext],
) -> None:
    rolled = Changed(fit_teacher(photos_with(None)), after=lambda logits: logits.roll(1, dims=1))
    (finding,) = check_teacher_input(photos_with(rolled))
    assert (finding.name, finding.severity) == ("teacher-class-order", "refusal")
    assert "its 'class0' is 'class3'" in finding.text


def test_channels_in_reverse_order_are_refused(
    photos_with: Callable[[nn.Module | None], CheckContext],
) -> None:
    findings = {
        finding.name: finding
        for finding in check_teacher_input(
            photos_with(Changed(fit_teacher(photos_with(None)), before=lambda image: image.flip(1)))
        )
    }
    assert findings["teacher-channel-order"].severity == "refusal"
    assert "BGR" in findings["teacher-channel-order"].text


def test_another_normalization_is_refused_and_named(
    photos_with: Callable[[nn.Module | None], CheckContext],
) -> None:
    whole = replace(IMAGENET, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    findings = list(check_teacher_input(photos_with(fit_teacher(photos_with(None), whole))))
    assert [(finding.name, finding.severity) for finding in findings] == [
        ("teacher-normalization", "refusal")
    ]
    assert "none, 0..255" in findings[0].text


def test_another_crop_is_refused_and_named(tmp_path: Path) -> None:
    write_centered_photos(tmp_path / "large")
    overrides = ("data=folder", f"data.root={tmp_path / 'large'}", "data.image_size=16")
    sound = build_context(tmp_path, *overrides)
    mean, std = sound.workspace.data.compute_pixel_statistics()
    cropped = fit_teacher(sound, InputSpec(3, 16, 16, mean, std, crop=0.5))
    findings = list(check_teacher_input(build_context(tmp_path, *overrides, teacher=cropped)))
    assert [(finding.name, finding.severity) for finding in findings] == [
        ("teacher-crop", "refusal")
    ]
    assert "a crop of 0.5 instead of 1" in findings[0].text


def test_gray_images_skip_the_checks_that_need_three_channels(
    tmp_path: Path,
) -> None:
    gray = build_context(tmp_path, teacher=fit_teacher(build_context(tmp_path)))
    assert not list_names(check_teacher_input(gray))
    assert torch.is_tensor(gray.sample[0].image)


def test_too_few_images_of_each_class_are_reported(
    photos_with: Callable[[nn.Module | None], CheckContext],
) -> None:
    context = photos_with(fit_teacher(photos_with(None)))
    context.judged = context.predictions.take(np.arange(11))
    (finding,) = check_teacher_input(context)
    assert (finding.name, finding.severity) == ("teacher-class-order", "note")
    assert "not testable: 11 images of 4 classes are less than 3 a class" in finding.text
