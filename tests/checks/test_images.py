"""Sets that touch each other, lack a class or are too small are found; the digits are
sound.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_app.checks.images import check_missing_classes, check_same_image, test_too_small
from tests.checks.planted import colored, names, subject

test_too_small.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return colored(tmp_path / "photos", images=24, ready=True)


def words(photos: Path) -> tuple[str, ...]:
    return ("data=folder", f"data.root={photos}", "teacher.name=resnet8")


def test_sound_sets_are_left_in_peace(photos: Path, tmp_path: Path) -> None:
    for sound in (subject(tmp_path, *words(photos)), subject(tmp_path, "teacher.name=resnet8")):
        assert not names(check_missing_classes(sound))
        assert not names(check_same_image(sound))


def test_the_same_image_in_two_splits_is_refused_and_named(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "test" / "class1" / "000.png", photos / "train" / "class1" / "again.png")
    findings = list(check_same_image(subject(tmp_path, *words(photos))))
    assert [(found.name, found.weight) for found in findings] == [("same-image", "refusal")]
    assert "test/class1/000.png (test) and train/class1/again.png (train)" in findings[0].text


def test_the_same_image_under_two_labels_is_the_same_image(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "test" / "class1" / "000.png", photos / "val" / "class2" / "again.png")
    assert names(check_same_image(subject(tmp_path, *words(photos)))) == ["same-image"]


def test_an_image_that_was_resized_made_paler_and_saved_as_a_jpeg_is_a_near_duplicate(
    photos: Path, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    for path in photos.rglob("*.png"):
        Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
            (64, 64), Image.Resampling.BICUBIC
        ).save(path)
    with Image.open(photos / "test" / "class1" / "000.png") as image:
        paler = image.resize((56, 56)).point(lambda level: int(0.9 * level + 12))
        paler.save(photos / "train" / "class1" / "again.jpg", quality=90)
    findings = list(check_same_image(subject(tmp_path, *words(photos))))
    assert [(found.name, found.weight) for found in findings] == [("near-duplicates", "warning")]
    assert "test/class1/000.png" in findings[0].text
    assert "again.jpg" in findings[0].text


def test_images_of_one_color_are_like_nothing(photos: Path, tmp_path: Path) -> None:
    for split, level in (("train", 10), ("test", 20)):
        Image.fromarray(np.full((16, 16, 3), level, dtype=np.uint8)).save(
            photos / split / "class0" / "flat.png"
        )
    assert not names(check_same_image(subject(tmp_path, *words(photos))))


def test_a_class_missing_from_a_split_is_refused(photos: Path, tmp_path: Path) -> None:
    shutil.move(photos / "train", tmp_path / "whole")
    for path in sorted((tmp_path / "whole" / "class2").iterdir())[2:]:
        path.unlink()
    findings = list(check_missing_classes(subject(tmp_path, *words(tmp_path / "whole"))))
    assert {(found.name, found.weight) for found in findings} == {("class-missing", "refusal")}
    assert "no image of 'class2' in validation" in findings[0].text


def test_a_test_set_too_small_for_the_margin_is_warned_of_with_what_was_assumed(
    tmp_path: Path,
) -> None:
    (found,) = test_too_small(subject(tmp_path, "teacher.name=resnet8"))
    assert (found.name, found.weight) == ("test-too-small", "warning")
    assert "359 images" in found.text
    assert "5% of the images (assumed: check.discordance)" in found.text
    assert not names(
        test_too_small(subject(tmp_path, "teacher.name=resnet8", "verdict.margin=0.05"))
    )


def test_no_more_images_are_compared_than_is_said(photos: Path, tmp_path: Path) -> None:
    few = subject(tmp_path, *words(photos), "check.max_compared=5")
    assert not names(check_same_image(few))
