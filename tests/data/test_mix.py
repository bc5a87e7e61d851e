"""Tests of mixup and CutMix as functions of (seed, index, view)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kd_app.config import RequestError
from kd_app.data.batch import Batch
from kd_app.data.loader import BatchRequest, Rank
from kd_app.data.mix import BatchMixer, MixSettings, mix_labels, mix_pixels
from kd_app.data.views import compute_image_keys
from tests.data.test_loader import builder, training
from tests.data.test_module import GRAY, arrays

MANY = np.arange(4000)
UP = {"mixup": 1.0, "cutmix": None, "probability": 1.0}
CUT = {"mixup": None, "cutmix": 1.0, "probability": 1.0}


def mixing(labeled: Any = None, rows: Any = MANY, **changed: Any) -> BatchMixer:
    return BatchMixer(MixSettings(**{**UP, **changed}), 7, rows, labeled)


def keys(index: Any = MANY, view: int = 0) -> Any:
    return compute_image_keys(3, index, view)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_the_shares_are_drawn_from_beta(alpha: float) -> None:
    share = mixing(mixup=alpha).draw(keys(), MANY, (2, 2)).share.astype(np.float64)
    assert share.mean() == pytest.approx(0.5, abs=0.03)
    assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_mixup_is_the_weighted_mean_of_pixels_and_of_labels() -> None:
    draw = mixing().draw(keys(), MANY, (4, 5))
    random = np.random.default_rng(0)
    own, other = random.integers(0, 256, (2, 4000, 4, 5, 3), dtype=np.uint8)
    mixed = mix_pixels(own, other, draw)
    share = draw.share[:, None, None, None]
    assert np.abs(mixed - (own * share + other * (1 - share))).max() <= 0.501
    target = mix_labels(MANY % 7, draw.partner % 7, draw, 7)
    assert target.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    different = (MANY - draw.partner) % 7 != 0
    assert target[different, (MANY % 7)[different]] == pytest.approx(
        draw.share[different], abs=1e-6
    )
    assert target[~different, (MANY % 7)[~different]] == pytest.approx(1.0, abs=1e-5)


def test_cutmix_pastes_a_rectangle_and_labels_count_its_pixels() -> None:
    draw = mixing(**CUT).draw(keys(), MANY, (8, 12))
    own, other = (np.full((4000, 8, 12, 1), value, dtype=np.uint8) for value in (10, 200))
    mixed = mix_pixels(own, other, draw)[..., 0]
    assert set(np.unique(mixed)) == {10, 200}
    assert (mixed == 10).mean(axis=(1, 2)) == pytest.approx(draw.share, abs=1e-6)
    for picture in mixed[:200] == 200:
        rows, columns = np.flatnonzero(picture.any(axis=1)), np.flatnonzero(picture.any(axis=0))
        if len(rows):
            assert picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def test_mixup_and_cutmix_share_the_images_and_probability_is_respected() -> None:
    both = mixing(cutmix=1.0).draw(keys(), MANY, (8, 8))
    cut = (np.isin(both.weight, (0.0, 1.0))).all(axis=(1, 2))
    assert cut.mean() == pytest.approx(0.5, abs=0.03)
    some = mixing(cutmix=1.0, probability=0.25).draw(keys(), MANY, (8, 8))
    assert (some.share < 1).mean() == pytest.approx(0.25, abs=0.03)


def test_a_labeled_image_has_a_labeled_partner() -> None:
    labeled = MANY % 10 == 0
    draw = mixing(labeled).draw(keys(), MANY, (2, 2))
    assert labeled[draw.partner[labeled]].all()
    assert labeled[draw.partner[~labeled]].mean() == pytest.approx(0.1, abs=0.02)
    target = mix_labels(
        np.where(labeled, MANY % 7, -1),
        np.where(labeled[draw.partner], draw.partner % 7, -1),
        draw,
        7,
    )
    assert np.isnan(target[~labeled]).all()
    assert np.isfinite(target[labeled]).all()


def test_mixed_images_without_labels_have_no_shares() -> None:
    draw, none = mixing().draw(keys(), MANY, (2, 2)), np.full(len(MANY), -1)
    assert mix_labels(none, none, draw, 0).shape == (len(MANY), 0)
    for own, other in ((MANY % 7, none), (none, MANY % 7)):
        assert np.isnan(mix_labels(own, other, draw, 7)).all()


def test_partners_are_all_training_images() -> None:
    rows = np.array([5, 8, 13])
    assert set(mixing(rows=rows).draw(keys(), MANY, (1, 1)).partner) == set(rows)


def test_mixing_depends_on_the_view_but_not_on_batch_or_rank() -> None:
    mixed_builder = replace(builder(30), mixing=mixing(rows=np.arange(30), cutmix=1.0))
    whole = mixed_builder[BatchRequest(1, np.array([4, 9, 2]))]
    alone, other_view = (
        mixed_builder[BatchRequest(1, np.array([9]))],
        mixed_builder[BatchRequest(2, np.array([9]))],
    )
    assert torch.equal(whole.image[1:2], alone.image)
    assert torch.equal(whole.target[1:2], alone.target)
    assert not torch.equal(other_view.target, alone.target)
    one = training(30, 8)
    one.builder = mixed_builder
    two = [training(30, 4, rank=Rank(number, 2)) for number in range(2)]
    for loader in (one, *two):
        loader.builder = mixed_builder
        loader.__post_init__()
    for both, first, second in zip(one, *two, strict=True):
        assert torch.equal(both.image[0::2], first.image)
        assert torch.equal(both.target[1::2], second.target)


def test_an_image_and_its_partner_are_mixed_in_their_views() -> None:
    plain, mixed_builder = builder(30), replace(builder(30), mixing=mixing(rows=np.arange(30)))
    index = np.array([4, 9, 2])
    draw = (
        mixed_builder.mixing.draw(keys(index, 1), index, (6, 6)) if mixed_builder.mixing else None
    )
    assert draw is not None
    own, other = (
        plain[BatchRequest(1, numbers)].image.permute(0, 2, 3, 1).numpy()
        for numbers in (index, draw.partner)
    )
    assert np.array_equal(
        mixed_builder[BatchRequest(1, index)].image.permute(0, 2, 3, 1).numpy(),
        mix_pixels(own, other, draw),
    )


def test_only_training_images_are_mixed() -> None:
    data = arrays(mix=UP)
    data.bind(GRAY, order_seed=0)
    batch: Batch = next(iter(data.train_dataloader()))
    assert batch.target.shape == (8, 3)
    assert batch.target.dtype == torch.float32
    assert torch.equal(batch.to_hard_target(), batch.target.argmax(dim=1))
    assert next(iter(data.build_evaluation_loader("train", GRAY))).target.dim() == 1
    assert next(iter(data.val_dataloader())).target.dim() == 1
    assert arrays(mix={**UP, "mixup": None}).mix is None


@pytest.mark.parametrize(
    "wrong",
    [{"mixup": 0.0}, {"cutmix": -1.0}, {"probability": 0.0}, {"probability": 1.5}, {"mixupp": 1.0}],
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        arrays(mix={**UP, **wrong})
