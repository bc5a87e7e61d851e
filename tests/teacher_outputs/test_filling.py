"""Filling a cache and checking it: resumed, on a full disk, with the wrong teacher."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kd_app.config import InputSpec, RunError
from kd_app.data.base import ViewReplay
from kd_app.data.batch import Batch
from kd_app.models.spec import LoadedModel
from kd_app.models.weights import WeightsReport
from kd_app.teacher_outputs import filling
from kd_app.teacher_outputs.cache import CachedTeacherModel, TeacherCache
from kd_app.teacher_outputs.filling import CacheFiller, measure_embedding_width
from kd_app.teacher_outputs.format import (
    CacheFormat,
    EmbeddingFormat,
    ExactFormat,
    Int8Format,
    TopTenFormat,
)

PIXELS = InputSpec(1, 4, 4, (0.0,), (1.0,))
CLASSES, WIDTH = 200, 16
ROWS = np.array([1, 4, 5, 8, 20], np.int64)
EXACT = ExactFormat(CLASSES)


class Classifier(nn.Module):
    """A net with an embedding of 16 values, whose weights depend on `seed`."""

    def __init__(self, seed: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Linear(16, WIDTH)
            self.head = nn.Linear(WIDTH, CLASSES)
        self.head.weight.data *= scale

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(image.flatten(1)).relu())
        return logits


def replay() -> ViewReplay:
    """Pixels that depend on the image number and the view, in batches of two."""

    def read(view: int, rows: np.ndarray) -> Any:
        for start in range(0, len(rows), 2):
            images = torch.from_numpy(rows[start : start + 2])
            cells = torch.arange(16).reshape(1, 4, 4)
            pixels = (images.reshape(-1, 1, 1, 1) * 37 + view * 11 + cells * 5) % 251
            yield Batch(pixels.to(torch.uint8), images * 0, images, view=view)

    return ViewReplay(3, ROWS, {}, read, lambda *_: {})


def filler(model: nn.Module | None = None) -> CacheFiller:
    loaded = LoadedModel((model or Classifier()).eval(), PIXELS, WeightsReport("test", "a", 4))
    return CacheFiller(
        loaded,
        CachedTeacherModel(name="net", sha256="a", license="mit"),
        replay(),
        PIXELS,
        torch.device("cpu"),
        channels_last=False,
        say=lambda _: None,
    )


def fill(folder: Path, format: CacheFormat = EXACT, model: nn.Module | None = None) -> TeacherCache:
    folder.mkdir(exist_ok=True)
    filler(model).fill(format, 1, ROWS, folder)
    return TeacherCache.load([folder])


def select(cache: TeacherCache) -> Tensor:
    batch = Batch(torch.zeros(2, 1), torch.zeros(2), torch.tensor([20, 4]), view=1)
    logits = cache.select(batch).logits
    assert logits is not None
    return logits


def test_the_rows_are_the_teachers_outputs_for_the_view(tmp_path: Path) -> None:
    cache = fill(tmp_path)
    (batch,) = replay().batches(1, np.array([20, 4]))
    expected = Classifier()(batch.image.float() / 255)
    torch.testing.assert_close(select(cache), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cache.json",
        "index.npy",
        "rows.bin",
    ]


@pytest.mark.parametrize(
    "format",
    [EXACT, Int8Format(CLASSES), TopTenFormat(CLASSES), EmbeddingFormat(WIDTH)],
    ids=lambda format: format.name,
)
def test_a_sample_is_accepted_from_this_teacher_and_from_no_other(
    tmp_path: Path, format: CacheFormat
) -> None:
    cache = fill(tmp_path, format, Classifier(scale=8))
    filler(Classifier(scale=8)).check(cache)
    with pytest.raises(RunError, match=r"remake=\[answers-teacher-views\]"):
        filler(Classifier(seed=1, scale=8)).check(cache)


def test_an_interrupted_shard_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "_FLUSH_EVERY", 1)
    plain, calls = CacheFiller.infer, list[int]()

    def infer(self: CacheFiller, format: CacheFormat, view: int, rows: np.ndarray) -> Any:
        calls.append(len(rows))
        for number, each in enumerate(plain(self, format, view, rows)):
            if len(calls) == 1 and number == 2:
                raise KeyboardInterrupt
            yield each

    monkeypatch.setattr(CacheFiller, "infer", infer)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "cut")
    cut, whole = fill(tmp_path / "cut"), fill(tmp_path / "whole")
    assert calls == [5, 1, 5]
    assert torch.equal(select(cut), select(whole))


def test_rows_that_were_damaged_between_two_attempts_are_computed_again(tmp_path: Path) -> None:
    messages: list[str] = []
    rows, done, digest = filling._open_rows(tmp_path, (3, 2), messages.append)
    rows[:2] = values = np.arange(4, dtype=np.uint8).reshape(2, 2)
    digest.update(values.data)
    filling._flush(tmp_path, rows, 2, digest)
    assert filling._open_rows(tmp_path, (3, 2), messages.append)[1] == 2
    rows[1, 1] = 7
    rows.flush()
    assert (done, messages) == (0, [])
    assert filling._open_rows(tmp_path, (3, 2), messages.append)[1] == 0
    assert "rows.bin is damaged; the teacher's outputs are computed again" in messages[0]


def test_a_full_disk_is_an_error_before_anything_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int, start: int, size: int) -> None:
        assert size == 3 * 5
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(OSError, match="quota") as raised:
        filling._open_rows(tmp_path, (3, 5), print)
    assert raised.value.filename == str(tmp_path / "rows.bin")
    assert list(tmp_path.iterdir()) == []


def test_the_space_of_a_shard_is_allocated(tmp_path: Path) -> None:
    filling._open_rows(tmp_path, (600, 50), print)
    status = (tmp_path / "rows.bin").stat()
    assert status.st_blocks * 512 >= status.st_size == 600 * 50


def test_a_teacher_that_returns_nan_is_not_cached(tmp_path: Path) -> None:
    model = Classifier()
    model.head.bias.data[3] = torch.nan
    with pytest.raises(RunError, match=r"NaN or infinite values for view 1 of the images \[1, 4\]"):
        fill(tmp_path, EXACT, model)


def test_the_loss_of_a_format_is_measured_on_the_teachers_outputs() -> None:
    sharp = filler(Classifier(scale=8))
    int8 = sharp.measure_lost_shares(Int8Format(CLASSES), [1.0, 4.0])
    assert max(int8.values()) < 1e-3
    embedding = sharp.measure_lost_shares(EmbeddingFormat(WIDTH), [4.0])
    assert embedding[4.0] < 1e-4
    # 200 almost equal classes: the ten largest say little
    flat = filler(Classifier(scale=0.1)).measure_lost_shares(TopTenFormat(CLASSES), [1.0])
    assert flat[1.0] > 0.3


def test_the_width_of_an_embedding_is_measured() -> None:
    loaded = LoadedModel(Classifier().eval(), PIXELS, WeightsReport("test", "a", 4))
    assert measure_embedding_width(loaded) == WIDTH
