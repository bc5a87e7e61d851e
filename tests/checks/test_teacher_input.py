"""A teacher that is fed otherwise than it was trained is refused, and told how it was;
one that is not is left in peace.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from kd_app.checks.context import CheckContext
from kd_app.checks.teacher_input import check_teacher_input
from kd_app.config import InputSpec
from tests.checks.planted import Changed, centered, colored, fitted, names, subject

IMAGENET = InputSpec(3, 16, 16, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    colored(folder / "photos")
    return folder


@pytest.fixture(scope="module")
def looked_at(place: Path) -> Callable[[nn.Module | None], CheckContext]:
    """A run on the photos with this teacher."""
    return lambda teacher: subject(
        place, "data=folder", f"data.root={place / 'photos'}", "data.image_size=16", teacher=teacher
    )


def test_a_teacher_that_is_fed_as_it_was_trained_is_left_in_peace(
    looked_at: Callable[[nn.Module | None], CheckContext],
) -> None:
    sound = looked_at(fitted(looked_at(None)))
    assert sound.hits.mean() > 0.9
    assert not names(check_teacher_input(sound))


def test_classes_in_another_order_are_seen(
    looked_at: Callable[[nn.Module | None], CheckContext],
) -> None:
    rolled = Changed(fitted(looked_at(None)), after=lambda logits: logits.roll(1, dims=1))
    (found,) = check_teacher_input(looked_at(rolled))
    assert (found.name, found.weight) == ("teacher-class-order", "refusal")
    assert "by 'class0' it means 'class3'" in found.text


def test_channels_the_other_way_round_are_seen(
    looked_at: Callable[[nn.Module | None], CheckContext],
) -> None:
    findings = {
        found.name: found
        for found in check_teacher_input(
            looked_at(Changed(fitted(looked_at(None)), before=lambda image: image.flip(1)))
        )
    }
    assert findings["teacher-channel-order"].weight == "refusal"
    assert "BGR" in findings["teacher-channel-order"].text


def test_another_normalization_is_seen_and_named(
    looked_at: Callable[[nn.Module | None], CheckContext],
) -> None:
    whole = replace(IMAGENET, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    findings = list(check_teacher_input(looked_at(fitted(looked_at(None), whole))))
    assert [(found.name, found.weight) for found in findings] == [
        ("teacher-normalization", "refusal")
    ]
    assert "none, 0..255" in findings[0].text


def test_another_crop_is_seen_and_named(tmp_path: Path) -> None:
    centered(tmp_path / "large")
    words = ("data=folder", f"data.root={tmp_path / 'large'}", "data.image_size=16")
    sound = subject(tmp_path, *words)
    mean, std = sound.shop.data.compute_pixel_statistics()
    cropped = fitted(sound, InputSpec(3, 16, 16, mean, std, crop=0.5))
    findings = list(check_teacher_input(subject(tmp_path, *words, teacher=cropped)))
    assert [(found.name, found.weight) for found in findings] == [("teacher-crop", "refusal")]
    assert "a crop of 0.5 in place of 1" in findings[0].text


def test_on_gray_images_and_those_of_ones_own_module_what_does_not_apply_is_left_out(
    tmp_path: Path,
) -> None:
    gray = subject(tmp_path, teacher=fitted(subject(tmp_path)))
    assert not names(check_teacher_input(gray))
    assert torch.is_tensor(gray.sample[0].image)
