"""Identical and nearly identical images are found, and stay in one split."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kd_app.data.division import SplitRatios
from kd_app.data.duplicates import (
    MAX_COMPARED,
    PictureContents,
    group_identical,
    group_similar,
    hash_picture,
    list_copies,
    make_thumbnail,
)
from kd_app.data.folder import Folder
from kd_app.data.index import ImageIndex


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def group(pictures: list[np.ndarray]) -> list[int]:
    thumbnails = torch.stack([make_thumbnail(picture) for picture in pictures])
    groups: list[int] = group_similar(thumbnails, np.arange(len(pictures))).tolist()
    return groups


def test_the_hash_depends_on_pixels_and_size() -> None:
    picture = draw(4, 6, 3)
    assert hash_picture(picture) == hash_picture(picture.copy())
    assert hash_picture(picture) != hash_picture(picture.reshape(6, 4, 3))
    assert hash_picture(picture) != hash_picture(draw(4, 6, 3, seed=1))


def test_equal_hashes_form_a_group_and_unreadable_images_do_not() -> None:
    groups = group_identical(np.array([7, 5, 0, 7, 0, 7], dtype=np.uint64))
    assert groups.tolist() == [0, 1, 2, 0, 4, 0]
    assert list_copies(groups) == [[0, 3, 5]]


def smooth(seed: int, size: int = 64) -> Image.Image:
    return Image.fromarray(draw(6, 6, 3, seed=seed)).resize((size, size), Image.Resampling.BICUBIC)


def test_resized_and_brighter_copies_are_similar_and_other_pictures_are_not() -> None:
    brighter = smooth(1, 56).point(lambda level: int(0.9 * level + 12))
    pictures = [np.asarray(each) for each in (smooth(0), smooth(1), smooth(2), brighter)]
    assert group(pictures) == [0, 1, 2, 1]


def test_similarity_is_passed_on_along_a_chain_and_over_blocks() -> None:
    first, last = (np.asarray(smooth(seed), dtype=np.float32) for seed in (0, 1))
    chain = [first + step / 60 * (last - first) for step in range(61)]
    others = [np.asarray(smooth(seed), dtype=np.float32) for seed in range(10, 610)]
    groups = group([chain[0], *others, *chain[1:]])
    assert {groups[0], *groups[601:]} == {0}
    assert groups[1:601] == list(range(1, 601))


def test_many_candidates_are_grouped_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 3, (60, 64, 64, 3), dtype=np.uint8)
    pictures = [np.asarray(smooth(n % 9)) // 2 + each * (1 + n % 4) for n, each in enumerate(noise)]
    few = group(pictures)
    assert 9 <= len(set(few)) < 60
    monkeypatch.setattr("kd_app.data.duplicates._FEW_PAIRS", 0)
    assert group(pictures) == few


def test_images_of_one_color_are_not_similar() -> None:
    assert group([np.full((8, 8, 3), level, np.uint8) for level in (10, 20, 30)]) == [0, 1, 2]


def test_too_many_images_are_only_grouped_if_identical(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_app.data.duplicates.MAX_COMPARED", 3)
    pixels = torch.from_numpy(np.stack([np.asarray(smooth(0))] * 4)).permute(0, 3, 1, 2)
    pixels[3, 0, 0, 0] += 1
    assert PictureContents.read(pixels).similar.tolist() == [0, 0, 0, 3]
    assert PictureContents.read(pixels[1:]).similar.tolist() == [0, 0, 0]
    assert MAX_COMPARED == 20_000


def test_a_class_of_similar_images_is_only_kept_together_where_images_are_equal() -> None:
    contents = PictureContents(
        np.array([1, 1, 2, 3, 4, 5, 6, 6], dtype=np.uint64), np.array([0, 0, 0, 0, 4, 5, 6, 6])
    )
    target = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert contents.find_copies(target).tolist() == [0, 0, 2, 3, 4, 5, 6, 6]


def load(root: Path, folder: Path) -> ImageIndex:
    index = ImageIndex(
        Folder(root=root, channels=3, class_level=None),
        shares=SplitRatios(validation=0.2, test=0.3),
        seed=0,
        cache="ram",
        on_error="raise",
        decoder="exact",
    )
    index.list()
    scan = index.scan_job(32)
    assert scan is not None
    folder.mkdir(exist_ok=True)
    scan.run(folder, lambda done, total: None)
    index.load(folder)
    return index


def find_splits(index: ImageIndex) -> dict[str, str]:
    return {
        index.listing.files[number]: split
        for split in ("train", "validation", "test")
        for number in index.list_rows(split).tolist()
    }


def write(root: Path, count: int = 20) -> Path:
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for number in range(count):
            smooth(100 * (label == "b") + number).save(root / label / f"{number:02d}.png")
    return root


def test_copies_stay_in_one_split_and_the_split_of_other_images_hardly_changes(
    tmp_path: Path,
) -> None:
    root = write(tmp_path / "photos")
    before = load(root, tmp_path / "first")
    assert not before.notes
    splits = find_splits(before)
    assert before.fingerprint == load(root, tmp_path / "again").fingerprint
    # Exact copies, one with another label and one in another format; and a paler copy.
    train = [file for file, split in splits.items() if split == "train"]
    for number, file in enumerate(train[:6]):
        with Image.open(root / file) as image:
            image.save(root / "ab"[number % 2] / f"copy{number}.bmp")
            image.point(lambda level: int(0.9 * level + 12)).save(root / "b" / f"pale{number}.png")
    after = load(root, tmp_path / "second")
    assert "12 image(s) are copies of others, 6 of them exact" in after.notes[0]
    split_of = find_splits(after)
    for number, file in enumerate(train[:6]):
        copies = (f"{'ab'[number % 2]}/copy{number}.bmp", f"b/pale{number}.png")
        assert {split_of[copy] for copy in copies} == {split_of[file]}
    assert set(split_of.values()) == {"train", "validation", "test"}
