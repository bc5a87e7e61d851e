"""Fill a teacher cache, and check it against the teacher."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor
from typing_extensions import TypedDict

from kd_app.config import InputSpec, RunError
from kd_app.config.records import read_record
from kd_app.data.base import ViewReplay
from kd_app.data.batch import Batch
from kd_app.data.normalize import normalize
from kd_app.losses.adapters import apply_classifier
from kd_app.models.outputs import Outputs
from kd_app.models.spec import LoadedModel
from kd_app.models.teacher import FrozenTeacher
from kd_app.stages import write_atomically
from kd_app.teacher_outputs.cache import (
    CACHE_STAGE,
    INDEX,
    ROWS,
    CachedTeacherModel,
    ShardRecord,
    TeacherCache,
    write_record,
)
from kd_app.teacher_outputs.format import CacheFormat, measure_lost_share

_DONE = "done.json"
_HASHED_BYTES = 2**26
_FLUSH_EVERY, _FLUSH_SECONDS = 50, 15.0
"""Batches and seconds between two flushes, from which a next attempt resumes."""
SAMPLE_IMAGES = 16
"""Images that are inferred again when a cache is opened."""
MEASURED_IMAGES = 256
"""Images on which the loss of a format is measured before a cache is filled."""


class _Progress(TypedDict):
    """The number of rows that are written, and their sha256."""

    answers: Annotated[int, Field(ge=0)]
    sha256: str


@dataclass(frozen=True)
class CacheFiller:
    """Computes the outputs of a frozen teacher for views of the training images.

    student_input: the input spec for which the views are normalized. The teacher runs
    in float32, whatever the precision of the training.
    """

    teacher: LoadedModel
    description: CachedTeacherModel
    replay: ViewReplay
    student_input: InputSpec
    device: torch.device
    channels_last: bool
    say: Callable[[str], None]

    def fill(
        self,
        format: CacheFormat,
        view: int,
        rows: Int64[np.ndarray, " rows"],
        folder: Path,
        *,
        title: str = "",
    ) -> None:
        """Write the shard of the images `rows` in a view into `folder`. Resumes an
        earlier attempt there.

        title: of the shard, for the console. Raises `RunError` if the disk is too small
        or the teacher returns NaN, and `OSError` if the disk gets full.
        """
        stored, done, digest = _open_rows(folder, (len(rows), format.bytes_per_view), self.say)
        np.save(folder / INDEX, rows)
        record = ShardRecord(
            format=format.name,
            width=format.width,
            view=view,
            images=len(rows),
            teacher=self.description,
        )
        write_record(folder, record)
        self.say(f"  teacher: view {view + 1}{title} ...")
        flushed_at = time.monotonic()
        for number, (batch, outputs) in enumerate(self.infer(format, view, rows[done:])):
            _check_finite(format.read_values(outputs), batch, self.description["name"])
            values = format.encode(outputs).cpu().numpy()
            stored[done : done + len(values)] = values
            digest.update(np.ascontiguousarray(values).data)
            done += len(values)
            is_late = time.monotonic() - flushed_at >= _FLUSH_SECONDS
            if (number + 1) % _FLUSH_EVERY == 0 or is_late:
                _flush(folder, stored, done, digest)
                flushed_at = time.monotonic()
        _flush(folder, stored, done, digest)
        (folder / _DONE).unlink()

    def infer(
        self, format: CacheFormat, view: int, rows: Int64[np.ndarray, " rows"]
    ) -> Iterator[tuple[Batch, Outputs]]:
        """The batches of a view of these images, with the teacher's outputs."""
        memory_format = self._memory_format
        frozen = FrozenTeacher(
            self.teacher.model,
            reads=format.computes,
            pixels=self.teacher.pixels,
            sees=self.student_input,
        )
        frozen = frozen.to(self.device).to(memory_format=memory_format)
        for raw in self.replay.batches(view, rows):
            batch = raw.to(self.device)
            yield batch, frozen(normalize(batch.image, self.student_input, memory_format))

    @cached_property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def measure_lost_shares(
        self, format: CacheFormat, temperatures: Sequence[float]
    ) -> dict[float, float]:
        """By temperature, the `measure_lost_share` of a format on some images of the
        first view.
        """
        exact, replayed = list[Tensor](), list[Tensor]()
        for _, outputs in self.infer(format, 0, _spread(self.replay.rows, MEASURED_IMAGES)):
            assert outputs.logits is not None
            exact.append(outputs.logits.float().cpu())
            stored = format.decode(format.encode(outputs))
            if stored.logits is None:
                assert stored.embedding is not None
                assert outputs.classifier is not None
                stored.logits = apply_classifier(outputs.classifier, stored.embedding)
            replayed.append(stored.logits.cpu())
        pair = torch.cat(exact), torch.cat(replayed)
        return {each: measure_lost_share(*pair, each) for each in temperatures}

    def check(self, cache: TeacherCache) -> None:
        """Compare a random sample of the rows with the teacher. Raises `RunError` if
        one differs by more than the format's tolerance.
        """
        random, images = np.random.default_rng(), cache.images
        view = int(random.choice(list(images)))
        count = min(SAMPLE_IMAGES, len(images[view]))
        sample = np.sort(random.choice(images[view], count, replace=False))
        for batch, outputs in self.infer(cache.format, view, sample):
            rows = torch.from_numpy(cache.read_rows(view, batch.index.cpu().numpy()))
            distance = cache.format.measure_distance(rows.to(self.device), outputs)
            if not distance <= cache.format.tolerance:
                raise RunError(
                    f"The cache of the teacher {self.description['name']} does not hold its"
                    f" outputs: view {view} of images {batch.index.tolist()[:5]} was"
                    f" inferred again and differs by {distance:.2g}, expected at most"
                    f" {cache.format.tolerance:.2g} ({cache.format.name}). The files were changed"
                    " or exchanged, or the teacher is not deterministic. To compute the cache"
                    f" again, set remake=[{CACHE_STAGE}]; to do without it, teacher.outputs=live."
                )


def measure_embedding_width(teacher: LoadedModel) -> int:
    """The width of a model's embedding. Raises `RequestError` if it has none."""
    pixels = teacher.pixels
    frozen = FrozenTeacher(
        teacher.model, reads=frozenset({"embedding"}), pixels=pixels, sees=pixels
    )
    device = next((p.device for p in teacher.model.parameters()), torch.device("cpu"))
    outputs: Outputs = frozen(
        torch.zeros(1, pixels.channels, pixels.height, pixels.width, device=device)
    )
    assert outputs.embedding is not None
    return outputs.embedding.shape[1]


def _spread(rows: Int64[np.ndarray, " rows"], count: int) -> Int64[np.ndarray, " rows"]:
    """`count` of the rows, at equal distances: they may be ordered by class."""
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)
    spread: Int64[np.ndarray, " rows"] = rows[np.unique(places)]
    return spread


def _check_finite(values: Tensor, batch: Batch, name: str) -> None:
    finite = values.isfinite().all(dim=1)
    if not finite.all():
        raise RunError(
            f"The teacher {name} returns NaN or infinite values for view {batch.view} of the images"
            f" {batch.index[~finite].tolist()[:5]}, so its outputs can't be cached. Check its"
            " weights with kd-check."
        )


Attempt = tuple[np.memmap[Any, Any], int, Any]
"""The file of all rows, the number of rows that are written, and their running sha256.
"""


def _open_rows(folder: Path, shape: tuple[int, int], say: Callable[[str], None]) -> Attempt:
    """Open the file of an earlier attempt, or create it. Starts over if its rows do not
    match the recorded sha256.
    """
    attempt = _open_attempt(folder, shape, say)
    path = folder / ROWS
    if attempt is not None:
        reserve_space(path)
        return attempt
    path.unlink(missing_ok=True)
    check_space(folder.parent, shape[0] * shape[1], f"{shape[0]:,} rows")
    rows = np.memmap(path, np.uint8, mode="w+", shape=shape)
    try:
        reserve_space(path)
    except OSError:
        path.unlink()
        raise
    return rows, 0, hashlib.sha256()


def check_space(folder: Path, needed: int, content: str) -> None:
    """Raise `RunError` if fewer bytes are free than `needed` for the teacher's
    outputs.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"The teacher's outputs for {content} take {needed / 1e9:.2f} GB, but only"
            f" {free / 1e9:.2f} GB are free in {folder}. Free disk space, choose a smaller format"
            " (teacher.cache=int8), lower data.views or teacher.cache_gb, or run the teacher during"
            " the training: teacher.outputs=live."
        )


def _open_attempt(
    folder: Path, shape: tuple[int, int], say: Callable[[str], None]
) -> Attempt | None:
    """The file of an earlier attempt; None if there is none, or if it is damaged."""
    try:
        record = read_record(folder / _DONE, _Progress, expected="")
        done = record["answers"]
        if (folder / ROWS).stat().st_size == shape[0] * shape[1] and done <= shape[0]:
            rows = np.memmap(folder / ROWS, np.uint8, mode="r+", shape=shape)
            digest = _hash_rows(rows, done)
            if digest.hexdigest() == record["sha256"]:
                return rows, done, digest
    except (OSError, ValueError):
        return None
    say(f"{folder / ROWS} is damaged; the teacher's outputs are computed again")
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


def _hash_rows(rows: np.memmap[Any, Any], count: int) -> Any:
    """The running sha256 of the first `count` rows."""
    digest, step = hashlib.sha256(), max(1, _HASHED_BYTES // rows.shape[1])
    for start in range(0, count, step):
        digest.update(rows[start : min(start + step, count)].tobytes())
    return digest


def _flush(folder: Path, rows: np.memmap[Any, Any], done: int, digest: Any) -> None:
    rows.flush()
    record = {"answers": done, "sha256": digest.hexdigest()}
    write_atomically(folder / _DONE, json.dumps(record))
