"""The teacher's logits, looked up by image: on the validation images in memory, and for
every training view in a cache on disk, which seeds, controls and trials share.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.lib.format import open_memmap
from torch import Tensor

from kd_app.config import InputSpec, RunError
from kd_app.data.base import ViewReplay
from kd_app.data.batch import Batch
from kd_app.data.normalize import normalize
from kd_app.metrics.record import Predictions
from kd_app.models.create import LoadedModel
from kd_app.models.outputs import Outputs
from kd_app.models.teacher import FrozenTeacher
from kd_app.stages import write_atomically

CACHE_STAGE = "answers-teacher-views"
"""Name of the stage that holds the cache."""
_LOGITS, _INDEX, _DONE = "logits.npy", "index.npy", "done.json"
_FLUSH_EVERY = 50
"""Batches after which the logits so far are safe on disk for a next attempt."""


@dataclass(frozen=True)
class TeacherLogits:
    """One row of logits per image: ``index [N]``, ascending image numbers, and ``logits
    [N, K]``.
    """

    index: Tensor
    logits: Tensor

    @staticmethod
    def from_predictions(predictions: Predictions) -> "TeacherLogits":
        """The logits of `predictions`, sorted by image number."""
        ordered = predictions.sorted()
        return TeacherLogits(torch.from_numpy(ordered.index), torch.from_numpy(ordered.logits))

    @staticmethod
    def load(folder: Path) -> "TeacherLogits":
        """The logits of the predictions in `folder`."""
        return TeacherLogits.from_predictions(Predictions.load(folder))

    def select(self, index: Tensor) -> Tensor:
        """``[B, K]``: the logits of the images with these numbers."""
        rows = torch.searchsorted(self.index, index.cpu())
        return self.logits[rows].to(index.device)


@dataclass(frozen=True)
class CachedTeacherLogits:
    """``index [N]``, ascending image numbers, and ``logits [views, N, K]`` as float32,
    memory-mapped.

    float32, because a smaller type would change the student: bfloat16 has 8 bits, so a
    logit of 20 is off by up to 0.06 and a probability at temperature 1 by 6 %. The cache
    takes 4 x views x N x K bytes.
    """

    index: Int64[np.ndarray, " images"]
    logits: Float[np.ndarray, "views images classes"]

    @staticmethod
    def load(folder: Path) -> "CachedTeacherLogits":
        """The cache that `cache_teacher_logits` left in `folder`."""
        return CachedTeacherLogits(
            np.load(folder / _INDEX), np.load(folder / _LOGITS, mmap_mode="r", allow_pickle=False)
        )

    def select(self, batch: Batch) -> Float[Tensor, "batch classes"]:
        """The logits for the view of each image of the batch, or of its partner image
        where there is one.
        """
        shown = batch.index if batch.other_index is None else batch.other_index
        rows = np.searchsorted(self.index, shown.cpu().numpy())
        return torch.from_numpy(self.logits[batch.view, rows]).to(batch.image.device)


def cache_teacher_logits(
    teacher: LoadedModel,
    replay: ViewReplay,
    classes: int,
    pixels: InputSpec,
    folder: Path,
    *,
    device: torch.device,
    channels_last: bool,
    say: Callable[[str], None],
) -> None:
    """Fill `folder` with the teacher's logits in `classes` classes for the views of
    `replay`, which a student with input `pixels` sees, in float32.

    Resumes an earlier attempt in `folder`. Raises `RunError` if the disk is too small.
    """
    rows, views = replay.rows, replay.views
    logits, done = _open_memmap(folder, (views, len(rows), classes))
    np.save(folder / _INDEX, rows)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    frozen = (
        FrozenTeacher(
            teacher.model, reads=frozenset({"logits"}), pixels=teacher.pixels, sees=pixels
        )
        .to(device)
        .to(memory_format=memory_format)
    )
    for view in range(done // len(rows), views):
        say(f"  teacher: view {view + 1} of {views} ...")
        start = max(0, done - view * len(rows))
        for number, raw in enumerate(replay.batches(view, start)):
            batch = raw.to(device)
            outputs: Outputs = frozen(normalize(batch.image, pixels, memory_format))
            assert outputs.logits is not None
            logits[view, start : start + len(batch)] = outputs.logits.float().cpu().numpy()
            start += len(batch)
            if (number + 1) % _FLUSH_EVERY == 0:
                _flush(folder, logits, view * len(rows) + start)
        _flush(folder, logits, (view + 1) * len(rows))
    (folder / _DONE).unlink()


def _open_memmap(folder: Path, shape: tuple[int, int, int]) -> tuple[np.memmap[Any, Any], int]:
    """The file of all logits, and the number of rows in it."""
    try:
        done = int(json.loads((folder / _DONE).read_text(encoding="utf-8"))["answers"])
        return open_memmap(folder / _LOGITS, mode="r+"), done
    except (OSError, ValueError, KeyError, TypeError):
        (folder / _LOGITS).unlink(missing_ok=True)
    needed, free = 4 * math.prod(shape), shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"The teacher's answers to {shape[0]} views of {shape[1]:,} images take"
            f" {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free in {folder.parent}."
            " Make room, lower data.views, or ask the teacher while training:"
            " teacher.outputs=live."
        )
    return open_memmap(folder / _LOGITS, mode="w+", dtype=np.float32, shape=shape), 0


def _flush(folder: Path, logits: np.memmap[Any, Any], answers: int) -> None:
    logits.flush()
    write_atomically(folder / _DONE, json.dumps({"answers": answers}))
