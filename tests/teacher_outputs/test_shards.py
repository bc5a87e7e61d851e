"""Shards of cached outputs: what a batch reads, and damaged or foreign files."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_app.config import RunError
from kd_app.models.outputs import Outputs
from kd_app.teacher_outputs.cache import CacheShard, TeacherCache
from kd_app.teacher_outputs.format import FORMATS
from tests.teacher_outputs.shards import select, shard, view_batch, write_shard


def test_a_batch_gets_the_rows_of_its_view_and_of_its_partner_images(tmp_path: Path) -> None:
    folders = [
        shard(tmp_path / "b", 0, [30, 31]),
        shard(tmp_path / "a", 0, [2, 5, 9]),
        shard(tmp_path / "c", 1, [2, 5]),
    ]
    cache = TeacherCache.load(folders)
    assert select(cache, [31, 2, 9, 30, 2]) == [31, 2, 9, 30, 2]
    assert select(cache, [5, 2], view=1) == [105, 102]
    partners = view_batch([2, 2], view=0)
    partners.other_index = torch.tensor([9, 30])
    logits = cache.select(partners).logits
    assert logits is not None
    assert logits[:, 0].tolist() == [9, 30]
    assert {view: images.tolist() for view, images in cache.images.items()} == {
        0: [2, 5, 9, 30, 31],
        1: [2, 5],
    }


@pytest.mark.parametrize("name", FORMATS)
def test_ranks_and_resumed_trainings_read_what_one_process_reads(tmp_path: Path, name: str) -> None:
    noise = torch.randn(10, 20, generator=torch.Generator().manual_seed(0))
    outputs = Outputs(logits=noise, embedding=noise)
    folder = write_shard(tmp_path / "a", FORMATS[name](20), outputs, 0, list(range(10)))

    def read(images: list[int], cache: TeacherCache) -> torch.Tensor:
        replayed = cache.select(view_batch(images))
        tensor = replayed.embedding if replayed.logits is None else replayed.logits
        assert tensor is not None
        return tensor

    cache = TeacherCache.load([folder])
    whole = read([7, 1, 9, 4], cache)
    for number, images in enumerate(([7, 9], [1, 4])):
        assert torch.equal(read(images, cache), whole[number::2])
        assert torch.equal(read(images, TeacherCache.load([folder])), whole[number::2])


def test_views_of_the_same_images_share_their_numbers(tmp_path: Path) -> None:
    cache = TeacherCache.load([shard(tmp_path / str(view), view, [3, 4]) for view in range(3)])
    assert cache.images[0] is cache.images[1] is cache.images[2]


@pytest.mark.parametrize(("images", "view"), [([3], 0), ([99], 0), ([2], 7)])
def test_what_is_not_cached_is_an_error(tmp_path: Path, images: list[int], view: int) -> None:
    cache = TeacherCache.load([shard(tmp_path / "a", 0, [2, 5])])
    with pytest.raises(RunError, match=f"does not hold view {view} of all of the images"):
        select(cache, images, view)


def test_few_shards_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_app.teacher_outputs.cache._MOST_OPEN", 2)
    shards = [CacheShard(shard(tmp_path / str(view), view, [3, 4])) for view in range(4)]
    cache = TeacherCache(shards)
    assert [select(cache, [4], view) for view in (0, 1, 2, 0)] == [[4], [104], [204], [4]]
    assert [each.is_open for each in shards] == [True, False, True, False]


def test_a_shard_that_is_truncated_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    folder = shard(tmp_path / "a", 0, [2, 5])
    cache = TeacherCache.load([folder])
    assert select(cache, [2]) == [2]
    os.truncate(folder / "rows.bin", 3)
    for _ in range(2):
        with pytest.raises(RunError, match=r"has 3 bytes, expected 22: .* Repeat the command"):
            select(cache, [2])


def test_a_shard_that_is_gone_is_an_error_before_it_is_read_and_none_after(tmp_path: Path) -> None:
    folder = shard(tmp_path / "a", 0, [2, 5])
    cache, later = TeacherCache.load([folder]), TeacherCache.load([folder])
    assert select(cache, [2]) == [2]
    (folder / "rows.bin").unlink()
    assert select(cache, [5]) == [5]
    with pytest.raises(RunError, match=r"rows\.bin.*Repeat the command"):
        select(later, [2])
    (folder / "cache.json").unlink()
    with pytest.raises(RunError, match=r"cache\.json"):
        TeacherCache.load([folder])


def test_shards_of_two_teachers_are_not_mixed(tmp_path: Path) -> None:
    folders = [shard(tmp_path / "a", 0, [2]), shard(tmp_path / "b", 1, [2], sha256="b")]
    with pytest.raises(RunError, match=r"different teachers .* net \(sha256 b\)"):
        TeacherCache.load(folders)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("index.npy", b"\x93NUMPY"),
        ("cache.json", b'{"format": "pickle"}'),
        ("cache.json", b"[]"),
    ],
)
def test_a_cache_of_somebody_else_is_data(tmp_path: Path, name: str, content: bytes) -> None:
    folder = shard(tmp_path / "a", 0, [2, 5])
    (folder / name).write_bytes(content)
    with pytest.raises(RunError, match="can't be read"):
        TeacherCache.load([folder])


def test_pickled_image_numbers_are_refused(tmp_path: Path) -> None:
    folder = shard(tmp_path / "a", 0, [2, 5])
    np.save(folder / "index.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(RunError, match="pickle"):
        TeacherCache.load([folder])
    np.save(folder / "index.npy", np.array([5, 2]))
    with pytest.raises(RunError, match="ascending image numbers"):
        TeacherCache.load([folder])
