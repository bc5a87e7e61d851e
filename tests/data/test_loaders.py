"""Tests of the loaders of an index, without a Trainer or a binding."""

from typing import Any

import numpy as np
import torch

from kd_app.data.corruptions import Corruption
from kd_app.data.loader import SINGLE, Rank
from kd_app.data.loaders import ImageLoaders
from kd_app.data.views import CropFlip, Keys, Pictures
from tests.data.test_index import arrays
from tests.data.test_module import GRAY


def invert(pictures: Pictures, keys: Keys) -> Pictures:
    return 255 - pictures


def double(pictures: Pictures, keys: Keys) -> Pictures:
    return 2 * pictures


def loaders(**changes: Any) -> ImageLoaders:
    settings: dict[str, Any] = {
        "index": arrays(label_fraction=changes.pop("label_fraction", None)),
        "view": CropFlip(padding=1, flip=True),
        "batch_size": 8,
        "num_workers": 0,
        "mix": None,
        "after_view": (),
    }
    return ImageLoaders(**{**settings, **changes})


def train(source: ImageLoaders, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "order_seed": 4,
        "partners": None,
        "pseudo_labels": None,
        "labeled_only": False,
        "views": None,
        "position": lambda: (0, 0),
        "rank": SINGLE,
        "reshuffle": True,
    }
    return source.build_training_loader(GRAY, **{**settings, **changes})


def test_changes_are_applied_after_the_view_in_order_and_in_training_only() -> None:
    plain = next(iter(train(loaders())))
    changed = loaders(after_view=(invert, double))
    assert torch.equal(next(iter(train(changed))).image, 2 * (255 - plain.image))
    for split in ("train", "test"):
        one, other = (
            next(iter(each.build_evaluation_loader(split, GRAY))) for each in (loaders(), changed)
        )
        assert torch.equal(one.image, other.image)


def test_labeled_images_take_as_many_steps_as_all_images() -> None:
    source = loaders(label_fraction=0.5)
    every, labeled = train(source), train(source, labeled_only=True)
    assert len(every) == len(labeled) == 42 // 8
    numbers = {number for batch in labeled for number in batch.index.tolist()}
    assert numbers <= set(source.index.labeled_rows.tolist())


def test_with_validation_an_epoch_has_the_images_of_both_splits_with_their_labels() -> None:
    source = loaders(label_fraction=0.5, batch_size=1)
    index = source.index
    both = [*index.training_rows.tolist(), *index.list_rows("validation").tolist()]
    batches = list(train(source, with_validation=True))
    numbers = [number for batch in batches for number in batch.index.tolist()]
    assert sorted(numbers) == sorted(both)
    targets = {
        n: t
        for batch in batches
        for n, t in zip(batch.index.tolist(), batch.target.tolist(), strict=True)
    }
    labeled = {number for number, target in targets.items() if target >= 0}
    assert labeled == {*index.labeled_rows.tolist(), *index.list_rows("validation").tolist()}
    assert not set(numbers) & set(index.list_rows("test").tolist())
    only = train(source, with_validation=True, labeled_only=True)
    assert {int(batch.index) for batch in only} == labeled
    assert {int(batch.index) for batch in train(source)} == set(index.training_rows.tolist())


def test_pseudo_labels_are_used_like_labels() -> None:
    source = loaders(label_fraction=0.5)
    own = source.index.labeled_rows
    first, *others = np.setdiff1d(source.index.training_rows, own).tolist()
    pseudo_labels = np.full(len(source.index.listing.target), -1)
    pseudo_labels[first] = 1
    loader = train(source, labeled_only=True, pseudo_labels=pseudo_labels)
    assert len(loader) == 42 // 8
    targets = {
        number: target
        for batch in train(source, pseudo_labels=pseudo_labels)
        for number, target in zip(batch.index.tolist(), batch.target.tolist(), strict=True)
    }
    assert set(loader.rows.tolist()) == {*own.tolist(), first}
    assert targets[first] == 1
    assert {targets[number] for number in others if number in targets} == {-1}
    truth = source.index.listing.target
    assert all(targets[n] == truth[n] for n in own.tolist() if n in targets)


def test_a_replay_shows_any_rows() -> None:
    source = loaders()
    rows = source.index.training_rows
    whole = torch.cat([batch.image for batch in source.replay(GRAY, 1, rows)])
    some = torch.cat([batch.image for batch in source.replay(GRAY, 1, rows[11:20:3])])
    assert torch.equal(some, whole[11:20:3])


def test_a_sample_is_a_part_of_the_split_in_order() -> None:
    source = loaders()
    numbers = torch.cat([batch.index for batch in source.sample("train", GRAY, 10)]).tolist()
    assert len(numbers) == 10
    assert numbers == sorted(numbers)
    assert set(numbers) < set(source.index.list_rows("train").tolist())


def test_a_corruption_changes_the_images_of_an_evaluation_and_ranks_share_it() -> None:
    source = loaders()
    plain, noisy = (
        torch.cat(
            [batch.image for batch in source.build_evaluation_loader("test", GRAY, corruption=each)]
        )
        for each in (None, Corruption("gaussian_noise", 3))
    )
    assert not torch.equal(plain, noisy)
    shares = [
        torch.cat(
            [
                batch.index
                for batch in source.build_evaluation_loader("test", GRAY, rank=Rank(number, 2))
            ]
        )
        for number in range(2)
    ]
    assert np.array_equal(np.sort(torch.cat(shares).numpy()), source.index.list_rows("test"))
