from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_app.config import InputSpec
from kd_app.data.loader import BatchBuilder, BatchRequest
from kd_app.data.partners import draw_class_partners
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


def test_the_partner_has_the_pixels_of_the_students_view() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 1, 6, 6), dtype=np.uint8)
    plain = BatchBuilder(
        hold(torch.from_numpy(pixels)),
        np.arange(20) % 3,
        CropFlip(padding=1, flip=True),
        InputSpec(1, 6, 6, (0.5,), (0.5,)),
        seed=3,
    )
    partners = draw_class_partners(plain.target, np.arange(20), seed=0)
    images = np.array([3, 11, 4])
    batch = replace(plain, partners=partners)[BatchRequest(7, images)]
    assert torch.equal(batch.image, plain[BatchRequest(7, images)].image)
    assert batch.other is not None
    assert torch.equal(batch.other, plain[BatchRequest(7, partners[images])].image)
    assert plain[BatchRequest(7, images)].other is None
