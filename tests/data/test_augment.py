"""Tests of RandAugment and random erasing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kd_app.config import RequestError
from kd_app.data.augment import Augment
from kd_app.data.loader import BatchRequest
from kd_app.data.views import compute_image_keys
from tests.data.test_loader import builder
from tests.data.test_module import arrays

INDEX = np.arange(300)


def pictures(channels: int = 3, side: int = 16) -> Any:
    return np.random.default_rng(0).integers(
        0, 256, (len(INDEX), side, side, channels), dtype=np.uint8
    )


def augment(**changed: Any) -> Augment:
    return Augment(**{"operations": 2, "magnitude": 9, "erasing": 0.25, **changed})


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_is_independent_of_the_batch_and_keeps_the_global_generators(
    channels: int,
) -> None:
    images, keys = pictures(channels), compute_image_keys(0, INDEX, 1)
    before = torch.get_rng_state()
    whole = augment()(images, keys)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert np.array_equal(augment()(images[7:9], keys[7:9]), whole[7:9])
    assert not np.array_equal(augment()(images, compute_image_keys(0, INDEX, 2)), whole)
    assert np.array_equal(images, pictures(channels))


def test_erasing_fills_a_rectangle_of_some_images_with_noise() -> None:
    images = np.full((len(INDEX), 20, 20, 1), 7, dtype=np.uint8)
    changes = (
        augment(operations=0, erasing=0.5)(images, compute_image_keys(0, INDEX, 0))[..., 0] != 7
    )
    erased = changes.any(axis=(1, 2))
    assert erased.mean() == pytest.approx(0.5, abs=0.1)
    assert 0.01 < changes[erased].mean(axis=(1, 2)).min() < 0.05
    assert 0.25 < changes[erased].mean(axis=(1, 2)).max() < 0.37
    for picture in changes[erased][:50]:
        rows, columns = np.flatnonzero(picture.any(axis=1)), np.flatnonzero(picture.any(axis=0))
        assert (
            picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.8
        )  # noise is a 7 once in 256


def test_without_operations_and_erasing_images_are_unchanged() -> None:
    assert arrays(augment={"operations": 0, "magnitude": 9, "erasing": 0.0}).augment is None
    images = pictures()
    assert np.array_equal(
        augment(operations=0, erasing=0.0)(images, compute_image_keys(0, INDEX, 0)), images
    )


def test_the_loader_augments_the_view_of_an_image() -> None:
    plain, augmented = builder(30), replace(builder(30), after_view=(augment(),))
    batch, request = plain[BatchRequest(1, INDEX[:9])], BatchRequest(1, INDEX[:9])
    expected = augment()(
        batch.image.permute(0, 2, 3, 1).contiguous().numpy(), compute_image_keys(3, INDEX[:9], 1)
    )
    assert np.array_equal(augmented[request].image.permute(0, 2, 3, 1).numpy(), expected)
    assert augmented.is_slow()


@pytest.mark.parametrize(
    "wrong", [{"operations": -1}, {"magnitude": 31}, {"erasing": 2.0}, {"erazing": 0.1}]
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        arrays(augment={"operations": 1, "magnitude": 9, "erasing": 0.0, **wrong})
