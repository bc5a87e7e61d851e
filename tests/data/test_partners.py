from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_app.config import InputSpec
from kd_app.data.loader import BatchBuilder, BatchRequest
from kd_app.data.partners import Partners, draw_class_partners, draw_partners
from kd_app.data.pixel_store import hold
from kd_app.data.views import CropFlip


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 2**32 - 1), st.data())
def test_a_partner_is_another_image_of_the_same_class_if_there_is_one(
    labels: list[int], seed: int, data: st.DataObject
) -> None:
    target = np.array(labels)
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, len(labels) - 1), min_size=1))))
    partners = draw_class_partners(target, rows, seed=seed)
    assert (target[partners] == target).all()
    alone = np.bincount(target[rows], minlength=5)[target[rows]] == 1
    assert ((partners[rows] == rows) == alone).all()
    assert sorted(partners[rows]) == rows.tolist(), "each is the partner of exactly one"
    assert (partners == draw_class_partners(target, rows, seed=seed)).all()
    others = np.setdiff1d(np.arange(len(target)), rows)
    assert (partners[others] == others).all()


def test_partners_depend_on_the_seed() -> None:
    target, rows = np.zeros(50, dtype=np.int64), np.arange(50)
    assert (
        draw_class_partners(target, rows, seed=0) != draw_class_partners(target, rows, seed=1)
    ).mean() > 0.5


def test_partners_of_all_images_are_those_of_a_single_class() -> None:
    target, rows = np.arange(20) % 3 - 1, np.arange(4, 20)
    partners = draw_partners("all", target, rows, seed=0)
    assert partners.view_shift == 0
    assert (partners.images[rows] != rows).all()
    assert (target[partners.images] != target).any(), "labels, or none, do not matter"
    within = draw_partners("class", target, rows, seed=0)
    assert (within.images == draw_class_partners(target, rows, seed=0)).all()


def _build() -> BatchBuilder:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 1, 6, 6), dtype=np.uint8)
    return BatchBuilder(
        hold(torch.from_numpy(pixels)),
        np.arange(20) % 3,
        CropFlip(padding=1, flip=True),
        InputSpec(1, 6, 6, (0.5,), (0.5,)),
        seed=3,
    )


def test_a_second_view_is_another_one_of_the_same_image() -> None:
    plain, images = _build(), np.arange(20)
    partners = draw_partners("view", plain.target, images, seed=0)
    batch = replace(plain, partners=partners)[BatchRequest(7, images)]
    assert batch.other is not None
    assert batch.other_index is not None
    assert (batch.other_index.numpy() == images).all()
    assert not torch.equal(batch.other, batch.image)
    again = BatchRequest(7 + partners.view_shift, images)
    assert torch.equal(batch.other, plain[again].image)


def test_the_partner_has_the_pixels_of_the_students_view() -> None:
    plain = _build()
    partners = draw_class_partners(plain.target, np.arange(20), seed=0)
    images = np.array([3, 11, 4])
    batch = replace(plain, partners=Partners(partners))[BatchRequest(7, images)]
    assert torch.equal(batch.image, plain[BatchRequest(7, images)].image)
    assert batch.other is not None
    assert torch.equal(batch.other, plain[BatchRequest(7, partners[images])].image)
    assert plain[BatchRequest(7, images)].other is None
