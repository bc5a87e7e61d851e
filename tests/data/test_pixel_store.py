import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from PIL import Image

from kd_app.config import RunError
from kd_app.data import pixel_store
from kd_app.data.images import BadImageError
from kd_app.data.pixel_store import (
    Cache,
    HeldStore,
    ImageSelection,
    compute_channel_statistics,
    hold,
    open_store,
)
from kd_app.data.scan import PIXELS, choose_typical_size, read_scan, scan
from kd_app.data.source import Listing, Source

CACHES: list[Cache] = ["ram", "disk", "none"]
SIZES = [(40, 30), (30, 64), (7, 9), (100, 33), (31, 31)]


class Pictures(Source):
    """Images of noise with these (height, width); None is a bad image."""

    size = None

    def __init__(self, *, sizes: list[tuple[int, int] | None], channels: int = 3) -> None:
        self.sizes = sizes
        self.channels = channels

    def list_images(self) -> Listing:
        raise NotImplementedError

    def read(self, index: int, *, shorter_side: int | None = None) -> Image.Image:
        size = self.sizes[index]
        if size is None:
            raise BadImageError(f"image {index} is bad")
        shape = size if self.channels == 1 else (*size, 3)
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8))


def scan_images(
    source: Pictures, folder: Path, *, decode_size: int = 32, keep: bool = True
) -> Path:
    folder.mkdir(exist_ok=True)
    scan(
        source,
        len(source.sizes),
        folder,
        decode_size=decode_size,
        keep=keep,
        threads=2,
        progress=lambda done, total: None,
    )
    return folder


def same(first: UInt8[np.ndarray, "..."], second: UInt8[np.ndarray, "..."]) -> bool:
    return first.shape == second.shape and bool((first == second).all())


@pytest.mark.parametrize("channels", [1, 3])
def test_the_pixels_are_equal_in_memory_on_disk_and_decoded(tmp_path: Path, channels: int) -> None:
    source = Pictures(sizes=[*SIZES], channels=channels)
    folder = scan_images(source, tmp_path)
    ram, disk, none = (open_store(source, folder, cache).store for cache in CACHES)
    assert (ram.in_memory, disk.in_memory, none.in_memory) == (True, False, False)
    assert ram.size is disk.size is none.size is None
    for index in range(len(SIZES)):
        assert same(ram.read_image(index), disk.read_image(index))
        assert same(ram.read_image(index), none.read_image(index))


def test_shorter_sides_are_bounded_and_smaller_images_unchanged(tmp_path: Path) -> None:
    source = Pictures(sizes=[*SIZES])
    store = open_store(source, scan_images(source, tmp_path), "ram").store
    assert [store.read_image(index).shape[:2] for index in range(len(SIZES))] == [
        (40, 30),
        (30, 64),
        (7, 9),
        (97, 32),
        (31, 31),
    ]
    assert same(store.read_image(2), np.asarray(source.read(2)))
    reduced = source.read(3).resize((32, 97), Image.Resampling.LANCZOS, reducing_gap=3.0)
    assert same(store.read_image(3), np.asarray(reduced))


@pytest.mark.parametrize("cache", CACHES)
def test_images_of_one_size_form_one_array_despite_bad_ones(tmp_path: Path, cache: Cache) -> None:
    source = Pictures(sizes=[None, (9, 6), (9, 6), None, (9, 6), (9, 6)])
    opened = open_store(source, scan_images(source, tmp_path), cache).store
    assert opened.size == (9, 6)
    index = np.array([5, 1, 4, 1])
    assert same(
        opened.read_batch(index),
        np.stack([np.asarray(source.read(number)) for number in index.tolist()]),
    )
    assert same(
        np.stack(
            [np.asarray(picture) for picture in ImageSelection(opened, index).iterate_images()]
        ),
        opened.read_batch(index),
    )


def test_a_batch_can_be_written_to_without_changing_the_store(tmp_path: Path) -> None:
    source = Pictures(sizes=[(4, 4)] * 3)
    for cache in CACHES:
        store = open_store(source, scan_images(source, tmp_path), cache).store
        store.read_batch(np.array([0, 1]))[:] = 7
        assert same(store.read_image(0), np.asarray(source.read(0)))


def test_a_scan_records_bad_images_sizes_and_progress(tmp_path: Path) -> None:
    source = Pictures(sizes=[(40, 30), None, (7, 9)])
    calls: list[tuple[int, int]] = []
    scan(
        source,
        3,
        tmp_path,
        decode_size=16,
        keep=False,
        threads=2,
        progress=lambda done, total: calls.append((done, total)),
    )
    result = read_scan(tmp_path)
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert result.summary.bad == {"1": "image 1 is bad"}
    assert result.sizes.tolist() == [[40, 30], [0, 0], [7, 9]]
    assert result.shapes.tolist() == [[21, 16], [0, 0], [7, 9]]
    assert not (tmp_path / PIXELS).exists()


def test_an_error_that_is_no_bad_image_ends_the_scan(tmp_path: Path) -> None:
    class Broken(Pictures):
        def read(self, index: int, *, shorter_side: int | None = None) -> Image.Image:
            raise MemoryError("no memory")

    with pytest.raises(MemoryError, match="no memory"):
        scan_images(Broken(sizes=[*SIZES]), tmp_path)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_pixels_above_half_of_the_free_disk_are_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Pictures(sizes=[(10, 10)] * 4)
    for free, is_kept in ((2400, True), (2398, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: Usage(free, 0, free))
        folder = scan_images(source, tmp_path / str(free))
        assert (folder / PIXELS).exists() is is_kept
        opened = open_store(source, folder, "disk")
        assert bool(opened.notes) is not is_kept
        assert same(opened.store.read_image(3), np.asarray(source.read(3)))
    assert "data.cache=disk" in opened.notes[0]
    assert "decoded at each read" in opened.notes[0]


def test_pixels_above_a_quarter_of_the_memory_are_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Pictures(sizes=[(10, 10)] * 4)
    folder = scan_images(source, tmp_path)
    for available, in_memory in ((4800, True), (4799, False)):
        monkeypatch.setattr(
            pixel_store, "read_available_memory", lambda available=available: available
        )
        opened = open_store(source, folder, "ram")
        assert opened.store.in_memory is in_memory
        assert bool(opened.notes) is not in_memory
    assert "quarter of the available memory" in opened.notes[0]


@pytest.mark.parametrize("cache", CACHES)
def test_a_pickled_store_reads_the_same_and_holds_no_pixels(tmp_path: Path, cache: Cache) -> None:
    source = Pictures(sizes=[(64, 64)] * 20)
    folder = scan_images(source, tmp_path, decode_size=64)
    store = open_store(source, folder, cache).store
    text = pickle.dumps(store)
    assert len(text) < 20_000
    assert same(pickle.loads(text).read_image(7), store.read_image(7))
    assert copy.deepcopy(store) is store


def test_a_store_of_an_array_can_be_read_and_pickled(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (5, 3, 4, 6), dtype=torch.uint8)
    store = hold(pixels)
    assert isinstance(store, HeldStore)
    assert store.in_memory
    for each in (store, pickle.loads(pickle.dumps(store))):
        assert each.size == (4, 6)
        assert same(each.read_batch(np.array([4, 0])), pixels[[4, 0]].permute(0, 2, 3, 1).numpy())
        assert same(each.read_image(2), pixels[2].permute(1, 2, 0).numpy())


def test_a_scan_folder_has_a_summary(tmp_path: Path) -> None:
    source = Pictures(sizes=[(10, 10)] * 4)
    record = json.loads((scan_images(source, tmp_path) / "scan.json").read_text())
    assert record == {"decode_size": 32, "bad": {}, "kept": True, "size_bytes": 1200}


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        ([(28, 28)] * 3, 28),
        ([(28, 28), (0, 0), (28, 28)], 28),
        ([(512, 512)] * 3, 224),
        ([(28, 30)] * 3, 32),
        ([(100, 90), (120, 400), (99, 98)], 96),
        ([(6, 3)] * 2, 32),
        ([(3000, 2000)] * 2, 224),
    ],
)
def test_the_typical_size_is_that_of_equal_squares_or_a_multiple_of_32(
    sizes: list[tuple[int, int]], side: int
) -> None:
    assert choose_typical_size(np.array(sizes)) == side


def test_statistics_are_the_mean_and_deviation_of_all_pixels() -> None:
    pictures = [
        np.random.default_rng(side).integers(0, 200, (side, 5, 3), dtype=np.uint8)
        for side in (3, 8, 20)
    ]
    mean, deviation = compute_channel_statistics(pictures)
    together = np.concatenate(pictures).reshape(-1, 3) / 255
    assert mean == tuple(together.mean(axis=0).round(4).tolist())
    assert deviation == tuple(together.std(axis=0).round(4).tolist())


def test_the_deviation_of_images_of_one_color_is_not_zero() -> None:
    assert compute_channel_statistics([np.full((3, 3, 1), 255, dtype=np.uint8)]) == (
        (1.0,),
        (0.01,),
    )


def test_an_image_that_goes_bad_after_the_scan_is_a_failed_run(tmp_path: Path) -> None:
    source = Pictures(sizes=[(8, 8), (8, 8)])
    store, _ = open_store(source, scan_images(source, tmp_path / "scan"), "none")
    source.sizes[1] = None
    assert store.read_image(0).shape == (8, 8, 3)
    with pytest.raises(RunError, match=r"image 1 is bad.*restore the file and repeat"):
        store.read_image(1)
