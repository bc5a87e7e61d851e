import copy
import gc
import multiprocessing
import pickle
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from kd_app.config import InputSpec, RequestError
from kd_app.data.batch import Batch
from kd_app.data.images import BadImageError
from kd_app.data.loader import (
    SINGLE,
    BatchBuilder,
    BatchRequest,
    EvaluationLoader,
    Position,
    Rank,
    TrainingLoader,
)
from kd_app.data.pixel_store import HeldStore, PixelStore, hold
from kd_app.data.views import EVALUATION, CenterCropView, CropFlip, ResizedCrop, View

GRAY = InputSpec(1, 6, 6, (0.5,), (0.5,))
CROP = CropFlip(padding=1, flip=True)
PARTS = ResizedCrop(scale=(0.3, 1.0), ratio=(0.7, 1.4), flip=True, jitter=0.2)


def from_start() -> tuple[int, int]:
    return 0, 0


def start_of(epoch: int) -> Position:
    return lambda: (epoch, 0)


def builder(
    images: int, view: View = CROP, input_spec: InputSpec = GRAY, channels: int = 1
) -> BatchBuilder:
    store = hold(
        torch.from_numpy(
            np.random.default_rng(0).integers(0, 256, (images, channels, 6, 6), dtype=np.uint8)
        )
    )
    return BatchBuilder(store, np.arange(images) % 7, view, input_spec, seed=3)


def training(
    images: int,
    batch_size: int,
    *,
    position: Position = from_start,
    rank: Rank = SINGLE,
    workers: int = 0,
    view: View = CROP,
    **more: Any,
) -> TrainingLoader:
    batch_builder = builder(images, view)
    rows = np.arange(images)
    return TrainingLoader(
        batch_builder,
        rows,
        batch_size,
        num_workers=workers,
        order_seed=5,
        position=position,
        rank=rank,
        **more,
    )


def indices(batches: TrainingLoader | EvaluationLoader) -> list[list[int]]:
    return [batch.index.tolist() for batch in batches]


def same(first: list[Batch], second: list[Batch]) -> bool:
    def equal(a: Batch, b: Batch) -> bool:
        return a.view == b.view and all(
            torch.equal(x, y)
            for x, y in ((a.image, b.image), (a.index, b.index), (a.target, b.target))
        )

    return len(first) == len(second) and all(map(equal, first, second))


@given(st.integers(1, 60), st.integers(1, 17), st.integers(1, 4))
def test_an_epoch_has_each_image_at_most_once_and_drops_less_than_a_global_batch(
    images: int, batch_size: int, world: int
) -> None:
    if images < world:
        return
    ranks = [
        indices(training(images, batch_size, rank=Rank(number, world))) for number in range(world)
    ]
    numbers = [number for rank in ranks for batch in rank for number in batch]
    assert len(numbers) == len(set(numbers))
    assert images - len(numbers) < (batch_size if images >= batch_size * world else 1) * world
    assert {len(batch) for rank in ranks for batch in rank} == {min(batch_size, images // world)}
    assert {len(rank) for rank in ranks} == {len(training(images, batch_size, rank=Rank(0, world)))}


@given(st.integers(12, 60), st.integers(1, 6))
def test_two_ranks_with_half_the_batch_size_have_the_images_of_one_rank(
    images: int, half: int
) -> None:
    one = list(training(images, 2 * half))
    two = [list(training(images, half, rank=Rank(number, 2))) for number in range(2)]
    for whole, first, second in zip(one, *two, strict=True):
        for part, offset in ((first, 0), (second, 1)):
            assert torch.equal(whole.index[offset::2], part.index)
            assert torch.equal(whole.image[offset::2], part.image)


@given(st.integers(0, 3), st.integers(0, 6))
def test_batches_from_any_position_equal_those_of_an_uninterrupted_epoch(
    epoch: int, completed: int
) -> None:
    whole = list(training(50, 8, position=lambda: (epoch, 0)))
    assert len(whole) == 6
    assert same(list(training(50, 8, position=lambda: (epoch, completed))), whole[completed:])


def test_every_epoch_has_another_order_and_view_and_is_reproducible() -> None:
    epochs = [list(training(40, 8, position=start_of(epoch))) for epoch in (0, 1, 0)]
    orders = [[number for batch in epoch for number in batch.index.tolist()] for epoch in epochs]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) != orders[0]
    assert [epoch[0].view for epoch in epochs] == [0, 1, 0]
    assert same(epochs[0], epochs[2])


def test_without_reshuffling_each_epoch_has_the_same_images_in_another_view() -> None:
    first, second = (
        list(training(40, 8, position=start_of(epoch), reshuffle=False)) for epoch in (0, 1)
    )
    assert [batch.index.tolist() for batch in first] == [batch.index.tolist() for batch in second]
    assert [batch.view for batch in second] == [1] * 5
    assert not torch.equal(first[0].image, second[0].image)


def test_a_fixed_number_of_views_is_used_in_turn() -> None:
    epochs = [list(training(40, 8, position=start_of(epoch), views=3)) for epoch in range(7)]
    assert [epoch[0].view for epoch in epochs] == [0, 1, 2, 0, 1, 2, 0]
    first, again = (
        {n: x for b in epochs[e] for n, x in zip(b.index.tolist(), b.image, strict=True)}
        for e in (1, 4)
    )
    assert all(torch.equal(image, first[number]) for number, image in again.items())
    assert [b.index.tolist() for b in epochs[1]] != [b.index.tolist() for b in epochs[4]]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 3), st.integers(1, 2))
def test_an_epoch_of_few_images_consists_of_complete_passes(
    images: int, batch_size: int, epoch: int, world: int
) -> None:
    if images < world:
        return
    batches = list(
        training(
            images, batch_size, position=start_of(epoch), rank=Rank(0, world), images_an_epoch=100
        )
    )
    assert len(batches) == len(training(100, batch_size, rank=Rank(0, world)))
    a_pass = max(1, images // (batch_size * world))
    first = epoch * len(batches)
    for view in {batch.view for batch in batches}:
        numbers = [
            n
            for number, batch in enumerate(batches)
            if batch.view == (first + number) // a_pass == view
            for n in batch.index.tolist()
        ]
        assert len(numbers) == len(set(numbers))
    assert {batch.view for batch in batches} == {
        (first + number) // a_pass for number in range(len(batches))
    }


def test_passes_over_few_images_continue_across_epochs() -> None:
    epochs = [
        list(training(12, 4, position=start_of(epoch), images_an_epoch=40)) for epoch in range(2)
    ]
    assert [batch.view for epoch in epochs for batch in epoch] == [
        0,
        0,
        0,
        1,
        1,
        1,
        2,
        2,
        2,
        3,
        3,
        3,
        4,
        4,
        4,
        5,
        5,
        5,
        6,
        6,
    ]
    middle = list(training(12, 4, position=lambda: (1, 4), images_an_epoch=40))
    assert same(middle, epochs[1][4:])


def test_unused_labels_are_not_in_the_batch() -> None:
    labeled = np.arange(20) % 3 == 0
    batch_builder = replace(builder(20), labeled=labeled)
    batch = batch_builder[BatchRequest(0, np.array([3, 4, 0, 19]))]
    assert batch.labeled is not None
    assert batch.labeled.tolist() == [True, False, True, False]
    assert batch.target.tolist() == [3, -1, 0, -1]


def test_the_order_is_independent_of_the_global_generators() -> None:
    np.random.seed(0)
    first = indices(training(40, 8))
    np.random.seed(1)
    assert indices(training(40, 8)) == first


def test_a_checkpoint_is_refused_if_its_epochs_had_other_batches() -> None:
    state = training(40, 8).state_dict()
    training(40, 4, rank=Rank(1, 2)).load_state_dict(state)
    for other in (training(40, 4), training(39, 8)):
        with pytest.raises(RequestError, match="start a new run"):
            other.load_state_dict(state)


def test_fewer_images_than_ranks_are_refused() -> None:
    with pytest.raises(RequestError, match=r"3 training image.*4 processes"):
        training(3, 8, rank=Rank(0, 4))


class Numbered:
    """Two epochs, then a third that starts at its second batch."""

    def __init__(self) -> None:
        self.positions = iter([(0, 0), (1, 0), (2, 1)])

    def __call__(self) -> tuple[int, int]:
        return next(self.positions)


@pytest.mark.parametrize("view", [CROP, PARTS], ids=lambda view: type(view).__name__)
def test_two_workers_build_the_same_batches_as_none(view: View) -> None:
    alone, helped = (
        training(40, 8, workers=workers, position=Numbered(), view=view) for workers in (0, 2)
    )
    for _ in range(3):
        assert same(list(helped), list(alone))


def test_an_interrupted_epoch_does_not_leak_into_the_next() -> None:
    loader = training(40, 8, workers=2, position=Numbered())
    next(iter(loader))
    expected = list(training(40, 8, position=lambda: (1, 0)))
    assert same(list(loader), expected)


@given(st.integers(0, 50), st.integers(1, 5), st.integers(1, 9))
def test_evaluation_reads_each_image_once_with_equal_batch_counts_on_all_ranks(
    images: int, world: int, batch_size: int
) -> None:
    batch_builder = builder(max(images, 1), CenterCropView())
    loaders = [
        EvaluationLoader(
            batch_builder, np.arange(images), batch_size, num_workers=0, rank=Rank(number, world)
        )
        for number in range(world)
    ]
    results = [list(loader) for loader in loaders]
    assert {len(batches) for batches in results} == {len(loaders[0])}
    assert sorted(
        int(number) for batches in results for batch in batches for number in batch.index
    ) == list(range(images))
    assert all(
        batch.image.shape[1:] == (1, 6, 6) and batch.view == EVALUATION
        for batches in results
        for batch in batches
    )
    assert all(
        len(batch) == len(batch.target) == len(batch.index) <= batch_size
        for batches in results
        for batch in batches
    )


def test_evaluation_keeps_the_order_of_the_rows_on_one_rank() -> None:
    rows = np.array([9, 2, 5])
    assert indices(EvaluationLoader(builder(10, CenterCropView()), rows, 2, num_workers=0)) == [
        [9, 2],
        [5],
    ]


def test_a_batch_has_uint8_channels_last_images_targets_and_numbers() -> None:
    color = InputSpec(3, 6, 6, (0.5,) * 3, (0.5,) * 3)
    batch = builder(20, CROP, color, channels=3)[next(iter(training(20, 4)._plan_epoch(2)))]
    assert batch.image.dtype == torch.uint8
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert batch.target.dtype == batch.index.dtype == torch.int64
    assert torch.equal(batch.target, batch.index % 7)
    assert batch.view == 2


def colors(image: Tensor) -> UInt8[np.ndarray, "height width channels"]:
    array: np.ndarray = image.permute(1, 2, 0).numpy()
    return array


def test_channels_are_converted_as_in_pil() -> None:
    color = InputSpec(3, 6, 6, (0.5,) * 3, (0.5,) * 3)
    for stored, target_spec, mode in ((1, color, "RGB"), (3, GRAY, "L")):
        plain = builder(30, CenterCropView(), target_spec, channels=stored)
        for batch in EvaluationLoader(plain, np.arange(30), 8, num_workers=0):
            for number, image in zip(batch.index.tolist(), batch.image, strict=True):
                picture = plain.store.read_image(number)
                expected = np.asarray(
                    Image.fromarray(picture if stored == 3 else picture[:, :, 0]).convert(mode)
                ).reshape(6, 6, -1)
                np.testing.assert_array_equal(colors(image), expected)


@pytest.mark.parametrize(
    "remake",
    [copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))],
    ids=["copied", "pickled"],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_copied_or_pickled_loader_has_the_same_batches(remake: type, workers: int) -> None:
    loader = training(40, 8, workers=workers)
    before = list(loader)
    assert same(list(remake(loader)), before)


class Vanished(PixelStore):
    size = (6, 6)
    in_memory = False

    def read_image(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        raise BadImageError(f"image {index} is gone")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_raises_the_same_message_with_workers(workers: int) -> None:
    broken = BatchBuilder(Vanished(), np.zeros(4, dtype=np.int64), CROP, GRAY, seed=0)
    with pytest.raises(BadImageError) as raised:
        list(EvaluationLoader(broken, np.arange(4), 2, num_workers=workers))
    assert str(raised.value) == "image 0 is gone"


def test_workers_of_a_loader_in_a_cycle_of_references_end_at_once() -> None:
    loader = training(40, 8, workers=2)
    iterator = iter(loader)
    next(iterator)
    cycle: list[object] = [loader, iterator]
    cycle.append(cycle)
    del loader, iterator, cycle
    start = time.monotonic()
    gc.collect()
    assert not multiprocessing.active_children()
    assert time.monotonic() - start < 4


class Uneven(HeldStore):
    def __init__(self, shapes: Int64[np.ndarray, "images 2"]) -> None:
        super().__init__(np.zeros(int(shapes.prod(axis=1).sum()), dtype=np.uint8), shapes, 1)


def test_a_batch_view_of_images_of_different_sizes_is_refused() -> None:
    uneven = BatchBuilder(
        Uneven(np.array([[4, 5], [6, 6]])), np.zeros(2, dtype=np.int64), CROP, GRAY, seed=0
    )
    with pytest.raises(RequestError, match=r"differ in size.*data\.view"):
        list(EvaluationLoader(uneven, np.arange(2), 2, num_workers=0))


def test_workers_are_used_for_slow_views_and_stores_only() -> None:
    assert not builder(4).is_slow()
    assert not builder(4, CenterCropView()).is_slow()
    assert builder(4, CenterCropView(), InputSpec(1, 8, 8, (0.5,), (0.5,))).is_slow()
    assert builder(4, PARTS).is_slow()
    assert BatchBuilder(Vanished(), np.zeros(4, dtype=np.int64), CROP, GRAY, seed=0).is_slow()
