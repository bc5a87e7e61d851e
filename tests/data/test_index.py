"""Tests of the index of images, splits and labels."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_app.config import RequestError
from kd_app.data.division import SplitRatios
from kd_app.data.folder import Folder
from kd_app.data.index import ImageIndex
from kd_app.data.scan import note_aspect_ratio
from kd_app.data.source import build_source
from tests.data.test_module import Arrays, Files, subfolder


def index(source: Arrays, **changes: Any) -> ImageIndex:
    settings: dict[str, Any] = {"seed": 0, "cache": "ram", "on_error": "raise"}
    result = ImageIndex(source, shares=SplitRatios(0.1, 0.2), **{**settings, **changes})
    result.list()
    return result


def arrays(**changes: Any) -> ImageIndex:
    result = index(Arrays(images=60), **changes)
    result.load(None)
    return result


def files(folder: Path, *, bad: tuple[int, ...] = (), **changes: Any) -> ImageIndex:
    result = index(Files(root=Path("photos"), bad=bad), **changes)
    scan = result.scan_job(32)
    assert scan is not None
    if not (folder / "scan.json").exists():
        scan.run(folder, lambda done, total: None)
    result.load(folder)
    return result


def test_images_in_memory_need_no_scan() -> None:
    data = arrays()
    assert data.scan_job(32) is None
    assert data.classes == ("a", "b", "c")
    assert (data.source.channels, data.size) == (1, 6)
    assert data.sizes == {"train": 42, "validation": 6, "test": 12}
    assert sorted(np.concatenate([data.list_rows(name) for name in data.sizes]).tolist()) == list(
        range(60)
    )
    assert data.list_targets("test").tolist() == (data.list_rows("test") % 3).tolist()
    assert data.listing.files[7] == "007"
    assert data.notes == ()


def test_files_are_measured_by_the_scan(tmp_path: Path) -> None:
    data = files(tmp_path)
    assert data.size == 32
    assert data.store.read_image(0).shape == (36, 32, 3)
    assert arrays(image_size=48).size == 48


def test_the_statistics_are_those_of_the_train_split(tmp_path: Path) -> None:
    data = arrays()
    train = data.store.read_batch(data.list_rows("train")) / 255
    assert data.compute_pixel_statistics() == (
        (round(float(train.mean()), 4),),
        (round(float(train.std()), 4),),
    )
    of_files = [files(subfolder(tmp_path, cache), cache=cache) for cache in ("ram", "none")]
    assert of_files[0].compute_pixel_statistics() == of_files[1].compute_pixel_statistics()


def test_gray_pixels_of_color_files_are_other_pixels() -> None:
    data = index(Files(root=Path("photos"), bad=()))
    color = data.fingerprint
    data.source.channels = 1
    assert data.fingerprint != color


def test_bad_images_are_refused_by_name_and_number(tmp_path: Path) -> None:
    with pytest.raises(
        RequestError,
        match=(
            r"7 of 60 images.*003, 005, 010, 011, 020 and 2 more.*photos/003 is"
            r" truncated.*on_error=skip"
        ),
    ):
        files(tmp_path, bad=(3, 5, 10, 11, 20, 30, 59))
    with (tmp_path / "unreadable.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["file"] for row in rows] == ["003", "005", "010", "011", "020", "030", "059"]
    assert rows[6]["reason"] == "photos/059 is truncated"


def test_the_scan_of_a_refused_run_can_be_reused_with_skip(tmp_path: Path) -> None:
    with pytest.raises(RequestError):
        files(tmp_path, bad=(3, 59))
    data = files(tmp_path, bad=(3, 59), on_error="skip")
    (note,) = data.notes
    assert note.startswith(
        "2 image(s) can't be read and are left out: 003, 059. The first: photos/003 is truncated."
    )
    everything = np.concatenate([data.list_rows(name) for name in data.sizes])
    assert sorted(everything.tolist()) == [number for number in range(60) if number not in (3, 59)]
    assert sum(data.sizes.values()) == 58


def test_skipping_every_image_of_a_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="class 'b' in train"):
        files(tmp_path, bad=tuple(range(1, 60, 3)), on_error="skip")


def test_label_subsets_are_drawn_by_class_and_nested() -> None:
    few, some, other = (
        arrays(label_fraction=share, seed=seed) for share, seed in ((0.1, 0), (0.4, 0), (0.4, 1))
    )
    target = few.listing.target
    assert np.bincount(target[few.labeled_rows]).tolist() == [1, 1, 1]
    assert np.bincount(target[some.labeled_rows]).tolist() == [
        round(0.4 * n) for n in np.bincount(some.list_targets("train"))
    ]
    assert set(few.labeled_rows) < set(some.labeled_rows) < set(some.training_rows)
    assert set(some.labeled_rows) != set(other.labeled_rows)
    assert few.fingerprint == some.fingerprint == arrays().fingerprint  # the pixels are the same


def test_a_scan_is_keyed_by_listing_and_settings() -> None:
    scan = index(Files(root=Path("photos"), bad=()), cache="none").scan_job(48)
    assert scan is not None
    assert scan.config == {"decode_size": 48, "channels": 3, "keep": False}
    assert scan.inputs == {"listing": "f" * 64}


def test_iterate_images_returns_a_shuffled_split() -> None:
    data = arrays()
    numbers = [number for number, _ in data.iterate_images("train")]
    assert sorted(numbers) == data.list_rows("train").tolist() != numbers
    assert numbers == [number for number, _ in arrays().iterate_images("train")]
    number, picture = next(data.iterate_images("test"))
    assert np.array_equal(picture, data.store.read_image(number))


def test_root_is_passed_only_to_sources_that_use_it() -> None:
    source = build_source(partial(Files, bad=()), Path("photos"))
    assert isinstance(source, Files)
    assert source.root == Path("photos")
    with pytest.raises(RequestError, match=r"data\.root=photos has no effect"):
        build_source(partial(Arrays, images=6), Path("photos"))


@pytest.mark.parametrize(
    ("sizes", "noted"),
    [
        ([(40, 40), (30, 45), (45, 30)], False),
        ([(40, 40), (20, 60), (60, 20)], True),
        ([(40, 40), (0, 0), (0, 0)], False),
        ([(0, 0)], False),
    ],
)
def test_images_far_from_square_are_noted(sizes: list[tuple[int, int]], noted: bool) -> None:
    notes = note_aspect_ratio(np.array(sizes))
    assert bool(notes) == noted
    assert all("ratio of their sides is 3.0" in note and "33 %" in note for note in notes)


def test_wrong_channels_are_refused_with_what_works() -> None:
    wrong: Any = {"channels": 4}
    with pytest.raises(RequestError) as raised:
        build_source(partial(Folder, class_level=None, **wrong), Path("photos"))
    assert "channels=4 does not fit: expected 1 or 3" in str(raised.value)
    assert "data module of your own" in str(raised.value)
    assert "data.root" not in str(raised.value)
