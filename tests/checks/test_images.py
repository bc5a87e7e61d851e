"""Splits that overlap, lack a class or are too small are reported; sound splits are
not.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_app.checks.images import (
    check_dominant_class,
    check_labels,
    check_missing_classes,
    check_same_image,
    check_test_size,
)
from tests.checks.planted import build_context, list_names, write_colored_photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_colored_photos(tmp_path / "photos", images=24, ready=True)


def overrides(photos: Path) -> tuple[str, ...]:
    return ("data=folder", f"data.root={photos}", "teacher.name=resnet8")


def test_sound_splits_have_no_findings(photos: Path, tmp_path: Path) -> None:
    for context in (
        build_context(tmp_path, *overrides(photos)),
        build_context(tmp_path, "teacher.name=resnet8"),
    ):
        assert not list_names(check_missing_classes(context))
        assert not list_names(check_same_image(context))


def test_the_same_image_in_two_splits_is_refused_and_named(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "test" / "class1" / "000.png", photos / "train" / "class1" / "again.png")
    findings = list(check_same_image(build_context(tmp_path, *overrides(photos))))
    assert [(finding.name, finding.severity) for finding in findings] == [("same-image", "refusal")]
    assert "test/class1/000.png (test) and train/class1/again.png (train)" in findings[0].text


def test_the_same_image_under_two_labels_is_the_same_image(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "test" / "class1" / "000.png", photos / "val" / "class2" / "again.png")
    assert list_names(check_same_image(build_context(tmp_path, *overrides(photos)))) == [
        "same-image"
    ]


def test_an_image_that_was_resized_made_paler_and_saved_as_a_jpeg_is_a_near_duplicate(
    photos: Path, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    for path in sorted(photos.rglob("*.png")):
        Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
            (64, 64), Image.Resampling.BICUBIC
        ).save(path)
    with Image.open(photos / "test" / "class1" / "000.png") as image:
        paler = image.resize((56, 56)).point(lambda level: int(0.9 * level + 12))
        paler.save(photos / "train" / "class1" / "again.jpg", quality=90)
    findings = list(check_same_image(build_context(tmp_path, *overrides(photos))))
    assert [(finding.name, finding.severity) for finding in findings] == [
        ("near-duplicates", "warning")
    ]
    assert "test/class1/000.png" in findings[0].text
    assert "again.jpg" in findings[0].text


def test_images_of_one_color_are_no_near_duplicates(photos: Path, tmp_path: Path) -> None:
    for split, level in (("train", 10), ("test", 20)):
        Image.fromarray(np.full((16, 16, 3), level, dtype=np.uint8)).save(
            photos / split / "class0" / "flat.png"
        )
    assert not list_names(check_same_image(build_context(tmp_path, *overrides(photos))))


def test_a_class_missing_from_validation_or_test_is_warned_of(photos: Path, tmp_path: Path) -> None:
    shutil.move(photos / "train", tmp_path / "whole")
    for path in sorted((tmp_path / "whole" / "class2").iterdir())[2:]:
        path.unlink()
    findings = list(check_missing_classes(build_context(tmp_path, *overrides(tmp_path / "whole"))))
    assert {(finding.name, finding.severity) for finding in findings} == {
        ("class-missing", "warning")
    }
    assert "no image of 'class2' in validation" in findings[0].text


def test_the_warning_of_a_small_test_set_states_the_assumption(
    tmp_path: Path,
) -> None:
    (finding,) = check_test_size(build_context(tmp_path, "teacher.name=resnet8"))
    assert (finding.name, finding.severity) == ("test-too-small", "warning")
    assert "359 test images" in finding.text
    assert "5% of the images (assumed: check.discordance)" in finding.text
    assert not list_names(
        check_test_size(build_context(tmp_path, "teacher.name=resnet8", "verdict.margin=0.05"))
    )


def test_more_images_are_compared_up_to_a_number_and_before_a_training_only_by_hash(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(photos / "test" / "class1" / "000.png", photos / "train" / "class1" / "again.png")
    context = build_context(tmp_path, *overrides(photos))
    monkeypatch.setattr("kd_app.checks.images.MAX_COMPARED", 5)
    assert list_names(check_same_image(context)) == ["same-image"]
    context.is_quick = True
    assert list_names(check_same_image(context)) == ["same-image"]


def test_an_image_under_two_labels_is_reported_with_both(photos: Path, tmp_path: Path) -> None:
    assert not list_names(check_labels(build_context(tmp_path, *overrides(photos))))
    shutil.copy(photos / "train" / "class1" / "002.png", photos / "train" / "class2" / "again.png")
    (finding,) = check_labels(build_context(tmp_path, *overrides(photos)))
    assert (finding.name, finding.severity) == ("two-labels", "warning")
    assert "train/class1/002.png (class1) and train/class2/again.png (class2)" in finding.text


@pytest.mark.parametrize(("kept", "names"), [(3, ["class-dominates"]), (6, [])])
def test_a_dominant_class_is_reported(
    photos: Path, tmp_path: Path, kept: int, names: list[str]
) -> None:
    for path in sorted((photos / "train" / "class1").iterdir())[kept:]:
        path.unlink()
    for name in ("class2", "class3"):
        shutil.rmtree(photos / "train" / name)
    words = overrides(photos / "train")
    findings = list(check_dominant_class(build_context(tmp_path, *words)))
    assert list_names(findings) == names
    assert all("are 'class0'" in finding.text for finding in findings)
    words = (*words, "verdict.metric=balanced_accuracy")
    assert not list_names(check_dominant_class(build_context(tmp_path, *words)))
