"""A scan that is stopped goes on where it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kd_app.data.scan import PIXELS, read_scan
from kd_app.data.scan_progress import PROGRESS, ScanProgress
from tests.data.test_pixel_store import Pictures, scan_images

SIZES: list[tuple[int, int] | None] = [(12, 9), None, (8, 8), (9, 11), (8, 10), (7, 7)]


class Stopped(Pictures):
    """Images at one of which a signal arrives. reads: the numbers that were read."""

    def __init__(self, stop: int | None) -> None:
        super().__init__(sizes=SIZES)
        self.stop = stop
        self.reads: list[int] = []

    def read(self, index: int, *, shorter_side: int | None = None) -> Image.Image:
        self.reads.append(index)
        if index == self.stop:
            raise KeyboardInterrupt
        return super().read(index, shorter_side=shorter_side)


def stop_at(number: int, folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        scan_images(Stopped(number), folder)
    assert (folder / PROGRESS).is_file()


def content(folder: Path) -> list[Any]:
    scan = read_scan(folder)
    arrays = (scan.sizes, scan.shapes, scan.contents.hashes, scan.contents.similar)
    return [scan.summary, (folder / PIXELS).read_bytes(), *(each.tolist() for each in arrays)]


def test_a_stopped_scan_reads_the_other_images_only(tmp_path: Path) -> None:
    stop_at(3, tmp_path / "stopped")
    source = Stopped(None)
    folder = scan_images(source, tmp_path / "stopped")
    assert sorted(source.reads) == [3, 4, 5]
    assert content(folder) == content(scan_images(Pictures(sizes=SIZES), tmp_path / "whole"))
    assert not (folder / PROGRESS).exists()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (PIXELS, lambda data: bytes([data[0] ^ 1]) + data[1:]),
        (PIXELS, lambda data: data[:-1]),
        (PROGRESS, lambda data: data[: len(data) // 2]),
        (PROGRESS, lambda data: b""),
    ],
)
def test_a_damaged_attempt_is_not_used(name: str, change: Any, tmp_path: Path) -> None:
    stop_at(3, tmp_path / "stopped")
    path = tmp_path / "stopped" / name
    path.write_bytes(change(path.read_bytes()))
    source = Stopped(None)
    folder = scan_images(source, tmp_path / "stopped")
    assert sorted(source.reads) == list(range(6))
    assert content(folder) == content(scan_images(Pictures(sizes=SIZES), tmp_path / "whole"))


def test_pixels_written_after_the_last_save_are_cut_off(tmp_path: Path) -> None:
    picture = np.ones((2, 2, 3), dtype=np.uint8)
    progress = ScanProgress(3, (0,))
    with (tmp_path / PIXELS).open("wb") as file:
        progress.add(picture, file, limit=100)
        progress.save(tmp_path, file)
        progress.add(picture, file, limit=100)
    loaded = ScanProgress.load(tmp_path, PIXELS, 3, (0,))
    assert loaded.position.images == 1
    assert (tmp_path / PIXELS).stat().st_size == 12


def test_no_pixels_are_written_after_one_that_was_left_out(tmp_path: Path) -> None:
    progress = ScanProgress(3, (0,))
    with (tmp_path / PIXELS).open("wb") as file:
        for side in (2, 3, 1):
            progress.add(np.ones((side, side, 3), dtype=np.uint8), file, limit=20)
    assert progress.position[:3] == (3, 42, 12)
