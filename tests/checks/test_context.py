"""The sample of images on which checks judge a teacher, and which teacher that is."""

from pathlib import Path

import torch

from kd_app.checks.context import swap_channels
from kd_app.data.batch import Batch
from tests.checks.planted import build_context, fit_teacher


def test_the_sample_is_filled_up_with_images_of_train(tmp_path: Path) -> None:
    context = build_context(tmp_path, "check.images=70")
    external = build_context(tmp_path, "check.images=70", teacher=fit_teacher(context))
    assert external.teacher is not None
    num_validation = external.workspace.data.sizes["validation"]
    batches = external.load_batches(external.teacher.loaded.pixels, num_validation + 5)
    assert sum(len(batch) for batch in batches) >= num_validation + 5
    assert external.num_images == 70
    assert len(external.hits) == len(external.predictions.target) >= 70


def test_a_teacher_that_the_run_trains_is_not_there_yet(tmp_path: Path) -> None:
    context = build_context(tmp_path, "teacher.name=resnet8")
    assert context.teacher is None
    assert context.must_train_teacher
    assert not context.is_unmeasured
    assert context.any_teacher is not None
    assert context.any_teacher.pixels.channels == 1


def test_a_teacher_that_nothing_would_train_has_a_random_head(tmp_path: Path) -> None:
    context = build_context(tmp_path, "teacher.name=resnet8", "teacher.max_epochs=0")
    assert "teacher.max_epochs=0" in context.random_head
    assert not context.must_train_teacher
    assert context.teacher is None


def test_a_run_without_a_teacher_has_none_to_check(tmp_path: Path) -> None:
    context = build_context(tmp_path, "teacher=none", "loss=[cross_entropy]")
    assert context.any_teacher is None
    assert not context.must_train_teacher


def test_swapped_channels_are_in_reverse_order(tmp_path: Path) -> None:
    image = torch.arange(6.0).view(1, 3, 1, 2)
    batch = Batch(image, torch.tensor([0]), torch.tensor([0]))
    assert swap_channels(batch).image.flatten().tolist() == [4, 5, 2, 3, 0, 1]
