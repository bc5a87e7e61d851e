"""The teacher's logits by image: for validation images in memory, and for every
training view in a cache on disk that seeds, controls and trials share.
"""

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.lib.format import open_memmap
from pydantic import Field
from torch import Tensor
from typing_extensions import TypedDict

from kd_app.config import InputSpec, RunError
from kd_app.config.records import read_record
from kd_app.data.base import ViewReplay
from kd_app.data.batch import Batch
from kd_app.data.normalize import normalize
from kd_app.metrics.record import Predictions
from kd_app.models.outputs import Outputs
from kd_app.models.spec import LoadedModel
from kd_app.models.teacher import FrozenTeacher
from kd_app.stages import write_atomically

CACHE_STAGE = "answers-teacher-views"
"""The name of the stage that holds the cache."""
_LOGITS, _INDEX, _DONE = "logits.npy", "index.npy", "done.json"
_HASHED_ROWS = 2**14
_FLUSH_EVERY, _FLUSH_SECONDS = 50, 15.0
"""Batches and seconds between two flushes, from which a next attempt resumes."""


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
        ordered = predictions.sort_by_index()
        return TeacherLogits(torch.from_numpy(ordered.index), torch.from_numpy(ordered.logits))

    @staticmethod
    def load(folder: Path) -> "TeacherLogits":
        """The logits of the predictions in `folder`."""
        return TeacherLogits.from_predictions(Predictions.load(folder))

    def select(self, index: Tensor) -> Tensor:
        """``[B, K]``: the logits of the images with these numbers; NaN for others."""
        numbers = index.cpu()
        rows = torch.searchsorted(self.index, numbers).clamp(max=len(self.index) - 1)
        logits = self.logits[rows]
        logits[self.index[rows] != numbers] = torch.nan
        return logits.to(index.device)


@dataclass(frozen=True)
class CachedTeacherLogits:
    """``index [N]``, ascending image numbers, and ``logits [views, N, K]`` as
    memory-mapped float32.

    A smaller type would change the student: bfloat16 has 8 bits of precision, so the
    error of a logit of 20 is up to 0.06, and that of a probability at temperature 1 up
    to 6 %. The cache takes 4 x views x N x K bytes.
    """

    index: Int64[np.ndarray, " images"]
    logits: Float[np.ndarray, "views images classes"]

    @staticmethod
    def load(folder: Path) -> "CachedTeacherLogits":
        """The cache that `cache_teacher_logits` wrote into `folder`."""
        return CachedTeacherLogits(
            np.load(folder / _INDEX), np.load(folder / _LOGITS, mmap_mode="r", allow_pickle=False)
        )

    def select(self, batch: Batch) -> Float[Tensor, "batch classes"]:
        """The logits for the batch's view of each image, or of its partner image if the
        batch has partner images.
        """
        images = batch.index if batch.other_index is None else batch.other_index
        rows = np.searchsorted(self.index, images.cpu().numpy())
        return torch.from_numpy(self.logits[batch.view, rows]).to(batch.image.device)


def cache_teacher_logits(
    teacher: LoadedModel,
    replay: ViewReplay,
    classes: int,
    student_input: InputSpec,
    folder: Path,
    *,
    device: torch.device,
    channels_last: bool,
    say: Callable[[str], None],
) -> None:
    """Write the teacher's logits for all views of `replay` into `folder`, in float32.

    classes: number of classes. student_input: the input spec for which the views are
    normalized. Resumes an earlier attempt in `folder`. Raises `RunError` if the disk is
    too small, and `OSError` if it gets full.
    """
    rows, views = replay.rows, replay.views
    logits, done, digest = _open_memmap(folder, (views, len(rows), classes), say)
    np.save(folder / _INDEX, rows)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    frozen = FrozenTeacher(
        teacher.model, reads=frozenset({"logits"}), pixels=teacher.pixels, sees=student_input
    )
    frozen = frozen.to(device).to(memory_format=memory_format)
    flushed_at = time.monotonic()
    for view in range(done // len(rows), views):
        say(f"  teacher: view {view + 1} of {views} ...")
        start = max(0, done - view * len(rows))
        for number, raw in enumerate(replay.batches(view, start)):
            batch = raw.to(device)
            outputs: Outputs = frozen(normalize(batch.image, student_input, memory_format))
            assert outputs.logits is not None
            values = np.ascontiguousarray(outputs.logits.float().cpu().numpy())
            logits[view, start : start + len(batch)] = values
            digest.update(values.data)
            start += len(batch)
            is_late = time.monotonic() - flushed_at >= _FLUSH_SECONDS
            if (number + 1) % _FLUSH_EVERY == 0 or is_late:
                _flush(folder, logits, view * len(rows) + start, digest)
                flushed_at = time.monotonic()
        _flush(folder, logits, (view + 1) * len(rows), digest)
    (folder / _DONE).unlink()


class _Progress(TypedDict):
    """The number of rows that are written, and their sha256."""

    answers: Annotated[int, Field(ge=0)]
    sha256: str


Attempt = tuple[np.memmap[Any, Any], int, Any]
"""The file of all logits, the number of rows in it, and their running sha256."""


def _open_memmap(folder: Path, shape: tuple[int, int, int], say: Callable[[str], None]) -> Attempt:
    """Open the file of an earlier attempt, or create it. Starts over if its rows do not
    match the recorded sha256.
    """
    attempt = _open_attempt(folder, shape, say)
    if attempt is not None:
        reserve_space(folder / _LOGITS)
        return attempt
    (folder / _LOGITS).unlink(missing_ok=True)
    needed, free = 4 * math.prod(shape), shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"The teacher's logits for {shape[0]} views of {shape[1]:,} images take"
            f" {needed / 2**30:.1f} GiB, but only {free / 2**30:.1f} GiB are free in"
            f" {folder.parent}. Free disk space, lower data.views, or run the teacher during the"
            " training: teacher.outputs=live."
        )
    logits = open_memmap(folder / _LOGITS, mode="w+", dtype=np.float32, shape=shape)
    try:
        reserve_space(folder / _LOGITS)
    except OSError:
        (folder / _LOGITS).unlink()
        raise
    return logits, 0, hashlib.sha256()


def _open_attempt(
    folder: Path, shape: tuple[int, int, int], say: Callable[[str], None]
) -> Attempt | None:
    """The file of an earlier attempt; None if there is none, or if it is damaged."""
    try:
        record = read_record(folder / _DONE, _Progress, expected="")
        logits, done = open_memmap(folder / _LOGITS, mode="r+"), record["answers"]
        if logits.shape == shape and logits.dtype == np.float32:
            digest = _hash_rows(logits, done)
            if digest.hexdigest() == record["sha256"]:
                return logits, done, digest
    except (OSError, ValueError):
        return None
    say(f"{folder / _LOGITS} is damaged; the teacher's logits are computed again")
    return None


def reserve_space(path: Path) -> None:
    """Allocate the blocks of a file that is written through a mapping, where the system
    can (not on macOS).

    Without them, a full disk or a quota ends the process by a signal (SIGBUS). Raises
    `OSError` that names the file.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


def _hash_rows(logits: np.memmap[Any, Any], count: int) -> Any:
    """The running sha256 of the first `count` rows of all views."""
    digest, rows = hashlib.sha256(), logits.reshape(-1, logits.shape[-1])
    for start in range(0, count, _HASHED_ROWS):
        digest.update(rows[start : min(start + _HASHED_ROWS, count)].tobytes())
    return digest


def _flush(folder: Path, logits: np.memmap[Any, Any], rows: int, digest: Any) -> None:
    logits.flush()
    record = {"answers": rows, "sha256": digest.hexdigest()}
    write_atomically(folder / _DONE, json.dumps(record))
