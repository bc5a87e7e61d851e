"""A teacher's answers to every view that a training will show, asked for once and read
from a file: as often as there are seeds, controls, trials.
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

from kd_app.config import Pixels, RunError
from kd_app.data.base import ViewReplay
from kd_app.data.batch import Batch
from kd_app.data.normalize import normalize
from kd_app.models.create import Created
from kd_app.models.teacher import FrozenTeacher
from kd_app.stages import write_atomically

_LOGITS, _INDEX, _DONE = "logits.npy", "index.npy", "done.json"
STORED = "answers-teacher-views"
"""The stage that holds them."""
_SECURED = 50
"""Batches after which what was answered is on the disk for a next attempt."""


@dataclass(frozen=True)
class StoredAnswers:
    """``index [N]``, ascending image numbers, and ``logits [views, N, K]`` as float32,
    mapped from a file.

    float32, because a smaller kind would change the student: bfloat16 has 8 bits, so a
    logit of 20 is off by up to 0.06 and a probability at temperature 1 by 6 %. It takes
    4 x views x N x K bytes.
    """

    index: Int64[np.ndarray, " images"]
    logits: Float[np.ndarray, "views images classes"]

    @staticmethod
    def load(folder: Path) -> "StoredAnswers":
        """Those that `store` left in `folder`."""
        return StoredAnswers(
            np.load(folder / _INDEX), np.load(folder / _LOGITS, mmap_mode="r", allow_pickle=False)
        )

    def of(self, batch: Batch) -> Float[Tensor, "batch classes"]:
        """What the teacher says of the view of each image of the batch, or of the image
        that it is shown in its place.
        """
        asked = batch.index if batch.other_index is None else batch.other_index
        rows = np.searchsorted(self.index, asked.cpu().numpy())
        return torch.from_numpy(self.logits[batch.view, rows]).to(batch.image.device)


def store(
    teacher: Created,
    replay: ViewReplay,
    classes: int,
    pixels: Pixels,
    folder: Path,
    *,
    device: torch.device,
    channels_last: bool,
    say: Callable[[str], None],
) -> None:
    """Fill `folder` with the answers of `teacher` in `classes` classes to the views of
    `replay`, which a student who expects `pixels` is shown, in float32.

    Goes on where an earlier attempt in `folder` was. Raises `RunError` where the disk
    has no place for them.
    """
    rows, views = replay.rows, replay.views
    logits, done = _opened(folder, (views, len(rows), classes))
    np.save(folder / _INDEX, rows)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    asked = (
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
            answer = asked(normalize(batch.image, pixels, memory_format)).logits
            assert answer is not None
            logits[view, start : start + len(batch)] = answer.float().cpu().numpy()
            start += len(batch)
            if (number + 1) % _SECURED == 0:
                _secure(folder, logits, view * len(rows) + start)
        _secure(folder, logits, (view + 1) * len(rows))
    (folder / _DONE).unlink()


def _opened(folder: Path, shape: tuple[int, int, int]) -> tuple[np.memmap[Any, Any], int]:
    """The file of all answers, and how many of them are in it."""
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
            " teacher.answers=live."
        )
    return open_memmap(folder / _LOGITS, mode="w+", dtype=np.float32, shape=shape), 0


def _secure(folder: Path, logits: np.memmap[Any, Any], answers: int) -> None:
    logits.flush()
    write_atomically(folder / _DONE, json.dumps({"answers": answers}))
