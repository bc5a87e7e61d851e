"""How fast are training images read from JPEG files, compared with timm? ``python -m
benchmarks.data_path``

Random crops at 224 pixels with mirroring, read by one process with one thread: timm's
pipeline, kd_app's without a cache (fast and exact), and from its cache in memory. The
ways take turns in one process, block by block, so that the ratios of their processor
times are valid on a machine with other work. Also: the first scan and RandAugment, as
shares of one epoch of reading. Targets: 1.0 of timm without a cache, 2.5 from the
cache.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap
from timm.data import ImageDataset, create_transform

from benchmarks.photo_files import write_photos
from kd_app.config import InputSpec
from kd_app.config.compose import compose_config
from kd_app.data.augment import Augment
from kd_app.data.build import build_data
from kd_app.data.loader import BatchBuilder, BatchRequest
from kd_app.data.module import ImageData
from kd_app.data.views import compute_image_keys

SIDE, BATCH = 224, 50
PIXELS = InputSpec(3, SIDE, SIDE, (0.5,) * 3, (0.5,) * 3, interpolation="bilinear")
CROP: Mapping[str, tuple[float, float]] = {"scale": (0.35, 1.0), "ratio": (0.75, 1.3333)}
SIZES = ((500, 375), (1600, 1200))
TARGETS = {"no cache": 1.0, "cache in memory": 2.5}

Read = Callable[[int, np.ndarray], Any]
"""``read(epoch, numbers)`` reads a batch of images."""


def build_timm(folder: Path) -> Read:
    """timm's pipeline of training images: decode, crop, mirror, collate as 8 bits."""
    transform = create_transform(
        SIDE,
        is_training=True,
        scale=CROP["scale"],
        ratio=CROP["ratio"],
        hflip=0.5,
        color_jitter=0.0,
        interpolation="bilinear",
        use_prefetcher=True,
    )
    images = ImageDataset(str(folder), transform=transform)

    def read(epoch: int, numbers: np.ndarray) -> torch.Tensor:
        return torch.stack([images[number][0] for number in numbers.tolist()])

    return read


def build_images(folder: Path, *overrides: str) -> ImageData:
    """Return kd_app's data of a folder, listed but not scanned."""
    settings = compose_config("distill", ["data=folder", f"data.root={folder}", *overrides])
    data = build_data(settings["data"])
    assert isinstance(data, ImageData)
    data.list()
    return data


def scan(data: ImageData, folder: Path) -> float:
    """Scan the images, and return the processor time in seconds."""
    folder.mkdir()
    job = data.scan_job(320)
    assert job is not None
    start = time.process_time()
    job.run(folder, lambda done, total: None)
    return time.process_time() - start


def build_reader(data: ImageData, folder: Path) -> Read:
    """Return the reader of the training batches of scanned images."""
    data.load(folder)
    data.bind(PIXELS, order_seed=0)
    builder: BatchBuilder = data.train_dataloader().builder
    return lambda epoch, numbers: builder[BatchRequest(epoch, numbers)]


def measure(readers: Mapping[str, Read], images: int, rounds: int) -> dict[str, list[float]]:
    """Return the processor time in seconds per image, of each reader in each block."""
    numbers = np.random.default_rng(0).permutation(images)
    blocks = np.array_split(numbers, max(1, images // BATCH))
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for read in readers.values():
        read(0, blocks[0])
    names = list(readers)
    for epoch in range(rounds):
        for position, block in enumerate(blocks):
            # Each way comes first, second ... equally often.
            turn = position % len(names)
            for name in names[turn:] + names[:turn]:
                start = time.process_time()
                readers[name](epoch, block)
                seconds[name].append((time.process_time() - start) / len(block))
    return seconds


def compare(reference: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Return how many times as fast as the reference the other is: the median over
    blocks of the ratio of their times, and its 95 % bootstrap interval.
    """
    ratios = np.array(reference) / np.array(other)
    median = float(np.median(ratios))
    if (ratios == ratios[0]).all():
        return median, median, median
    interval = bootstrap((ratios,), np.median, method="percentile", rng=0).confidence_interval
    return median, float(interval.low), float(interval.high)


def run(width: int, height: int, images: int, rounds: int, folder: Path) -> bool:
    """Measure photographs of one size; whether all targets are met."""
    photos = write_photos(folder / "photos", images, width=width, height=height)
    size = sum(file.stat().st_size for file in photos.rglob("*.jpg")) / images / 1024
    print(f"\n{images} photographs, {width}x{height}, {size:.0f} KiB each", flush=True)
    cached, uncached = build_images(photos), build_images(photos, "data.cache=none")
    exact = build_images(photos, "data.cache=none", "data.decoder=exact")
    scans = {
        "cache in memory": scan(cached, folder / "ram"),
        "no cache": scan(uncached, folder / "none"),
    }
    readers = {
        "timm": build_timm(photos),
        "no cache": build_reader(uncached, folder / "none"),
        "no cache, exact": build_reader(exact, folder / "none"),
        "cache in memory": build_reader(cached, folder / "ram"),
    }
    seconds = measure(readers, images, rounds)
    is_met = True
    for name, times in seconds.items():
        ratio, low, high = compare(seconds["timm"], times)
        target = TARGETS.get(name)
        is_met &= target is None or ratio >= target
        print(
            f"  {name:16} {1 / statistics.median(times):6,.0f} images/s and core,"
            f" {ratio:.2f} ({low:.2f} to {high:.2f}) of timm"
            + (f"; target {target}" if target else ""),
            flush=True,
        )
    for name, total in scans.items():
        for reading in ("timm", "no cache"):
            epoch = statistics.mean(seconds[reading]) * images
            print(f"  first scan, {name}: {total / epoch:.2f} of one epoch of reading ({reading})")
    augment = Augment(operations=2, magnitude=9, erasing=0.0)
    batch = np.stack([readers["no cache"](0, np.arange(16)).image.permute(0, 2, 3, 1).numpy()])[0]
    start = time.process_time()
    augment(np.ascontiguousarray(batch), compute_image_keys(0, np.arange(16), 0))
    share = (time.process_time() - start) / 16 / statistics.median(seconds["no cache"])
    print(f"  RandAugment, 2 operations: {share:.2f} of the time to read an image (no cache)")
    return is_met


def main() -> int:
    """Print a table for each size; exit code 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=600, help="photographs of 500x375")
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each way")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    is_met = True
    for number, (width, height) in enumerate(SIZES):
        with tempfile.TemporaryDirectory() as name:
            images = max(BATCH, arguments.images // 4**number)
            is_met &= run(width, height, images, arguments.rounds, Path(name))
    return int(not is_met)


if __name__ == "__main__":
    sys.exit(main())
