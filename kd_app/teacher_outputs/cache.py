"""The teacher's outputs by image: for validation images in memory, and for training
views in a cache on disk that seeds, controls and trials share.

The cache is a set of shards. A shard is the folder of a stage with one view of a block
of the images: ``rows.bin`` (one row of bytes per image, see `CacheFormat`),
``index.npy`` (the image numbers, ascending) and ``cache.json`` (`ShardRecord`).
"""

import json
import mmap
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from pydantic import Field
from torch import Tensor
from typing_extensions import TypedDict

from kd_app.config import RequestError, RunError
from kd_app.config.records import read_record
from kd_app.data.batch import Batch
from kd_app.metrics.record import Predictions
from kd_app.models.outputs import Outputs
from kd_app.stages import write_atomically
from kd_app.teacher_outputs.format import FORMATS, CacheFormat

CACHE_STAGE: Final = "answers-teacher-views"
"""The name of the stages that hold the shards."""
ROWS, INDEX, CONTENT = "rows.bin", "index.npy", "cache.json"
_MOST_OPEN = 64
"""Shards that are mapped at the same time: each takes a file descriptor."""
_REPEAT: Final = (
    "Repeat the command: what is missing is computed again, and the training resumes from its last"
    " saved state"
)
Count = Annotated[int, Field(ge=0, le=10**12)]


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


class CachedTeacherModel(TypedDict):
    """The teacher whose outputs a shard holds: its name, the sha256 of its weights, and
    their license.
    """

    name: str
    sha256: str
    license: str


class ShardRecord(TypedDict):
    """The content of ``cache.json``.

    format, width: see `CacheFormat`. view: number of the view. images: number of rows.
    """

    format: str
    width: Annotated[int, Field(ge=1, le=10**9)]
    view: Count
    images: Count
    teacher: CachedTeacherModel


def write_record(folder: Path, record: ShardRecord) -> None:
    """Write ``cache.json`` of a shard."""
    write_atomically(folder / CONTENT, json.dumps(record, indent=1))


class CacheShard:
    """The rows of one view of a block of images, mapped when they are first read."""

    def __init__(self, folder: Path) -> None:
        self._file: int | None = None
        self._rows: UInt8[np.ndarray, "images bytes"] | None = None
        try:
            record = read_record(folder / CONTENT, ShardRecord, expected=f"{_REPEAT}.")
            index = np.load(folder / INDEX, allow_pickle=False)
        except (RequestError, EOFError, OSError, ValueError) as error:
            raise RunError(
                f"The shard {str(folder)!r} of the teacher's cache can't be read ({error})."
                f" {_REPEAT}."
            ) from None
        is_known = record["format"] in FORMATS and index.shape == (record["images"],)
        if not is_known or index.dtype != np.int64 or (np.diff(index) <= 0).any():
            raise RunError(
                f"{str(folder / CONTENT)!r} describes no shard of a teacher's cache: expected a"
                f" format of {', '.join(FORMATS)}, and ascending image numbers. Remove this folder."
                f" {_REPEAT}."
            )
        self.folder = folder
        self.view = record["view"]
        self.index: Int64[np.ndarray, " images"] = index
        self.format: CacheFormat = FORMATS[record["format"]](record["width"])
        self.teacher = record["teacher"]

    @property
    def size(self) -> int:
        """Bytes of the rows."""
        return len(self.index) * self.format.bytes_per_view

    @property
    def is_open(self) -> bool:
        """Whether the rows are mapped."""
        return self._file is not None

    def open(self) -> None:
        """Map the rows. Raises `RunError` if the file is missing or too short."""
        try:
            self._file = os.open(self.folder / ROWS, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except OSError as error:
            raise RunError(
                f"The rows of the teacher's cache are gone: {error}. {_REPEAT}."
            ) from None
        self._check_size()
        content = mmap.mmap(self._file, self.size, access=mmap.ACCESS_READ)
        rows = np.frombuffer(content, np.uint8)
        self._rows = rows.reshape(len(self.index), self.format.bytes_per_view)

    def close(self) -> None:
        """Drop the mapping."""
        if self._file is not None:
            os.close(self._file)
        self._file = self._rows = None

    __del__ = close

    def _check_size(self) -> None:
        assert self._file is not None
        if (size := os.fstat(self._file).st_size) != self.size:
            self.close()
            raise RunError(
                f"{str(self.folder / ROWS)!r} has {size:,} bytes, expected {self.size:,}: it was"
                f" truncated or overwritten. {_REPEAT}."
            )

    def take(self, places: Int64[np.ndarray, " batch"]) -> UInt8[np.ndarray, "batch bytes"]:
        """Copies of the rows at these places."""
        if self._rows is None:
            self.open()
        else:
            # a read beyond the end of a mapped file ends the process (SIGBUS)
            self._check_size()
        assert self._rows is not None
        taken: UInt8[np.ndarray, "batch bytes"] = self._rows.take(places, axis=0)
        return taken


class TeacherCache:
    """The cached outputs of one teacher for views of images.

    Only the image numbers are in memory, and the pages that the system keeps of the
    mapped rows.
    """

    def __init__(self, shards: Sequence[CacheShard]) -> None:
        first = shards[0]
        for shard in shards:
            if (shard.format, shard.teacher["sha256"]) != (first.format, first.teacher["sha256"]):
                raise RunError(
                    "The shards of a teacher's cache belong to different teachers or formats:"
                    f" {str(first.folder)!r} is of {_describe(first)}, {str(shard.folder)!r} of"
                    f" {_describe(shard)}. Remove the wrong one. {_REPEAT}."
                )
        self.format = first.format
        self._views: dict[int, _View] = {}
        for view in sorted({shard.view for shard in shards}):
            blocks = [shard for shard in shards if shard.view == view]
            self._views[view] = _View.build(blocks, list(self._views.values()))
        self._open: OrderedDict[int, CacheShard] = OrderedDict()

    @staticmethod
    def load(folders: Sequence[Path]) -> "TeacherCache":
        """The cache whose shards are in these folders. Raises `RunError` if one can't
        be read.
        """
        return TeacherCache([CacheShard(folder) for folder in folders])

    @property
    def images(self) -> dict[int, Int64[np.ndarray, " images"]]:
        """By view, the ascending numbers of the images."""
        return {number: view.index for number, view in self._views.items()}

    def select(self, batch: Batch) -> Outputs:
        """The outputs for the batch's view of each image, or of its partner image if
        the batch has partner images, on the batch's device.
        """
        images = batch.index if batch.other_index is None else batch.other_index
        rows = torch.from_numpy(self.read_rows(batch.view, images.cpu().numpy()))
        # the rows are smaller than what they hold: they are decoded after the copy
        return self.format.decode(rows.to(batch.image.device, non_blocking=True))

    def read_rows(
        self, number: int, images: Int64[np.ndarray, " batch"]
    ) -> UInt8[np.ndarray, "batch bytes"]:
        """The rows of images in the view with this number. Raises `RunError` if one is
        not in the cache.
        """
        view = self._views.get(number)
        places = np.zeros(len(images), np.int64) if view is None else view.find(images)
        if view is None or (view.index[places] != images).any():
            raise RunError(
                f"The teacher's cache does not hold view {number} of all of the images"
                f" {images[:5].tolist()} ... that the training reads. Use teacher.outputs=live, and"
                " report this as a fault of kd_app."
            )
        if len(view.shards) == 1:
            return self._note_use(view.shards[0]).take(places)
        rows = np.empty((len(images), self.format.bytes_per_view), np.uint8)
        blocks = np.searchsorted(view.starts, places, side="right") - 1
        for block in np.unique(blocks):
            inside = blocks == block
            shard = self._note_use(view.shards[block])
            rows[inside] = shard.take(places[inside] - view.starts[block])
        return rows

    def _note_use(self, shard: CacheShard) -> CacheShard:
        """Note the use of a shard, and drop the mapping least recently used."""
        self._open[id(shard)] = shard
        self._open.move_to_end(id(shard))
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)[1].close()
        return shard


@dataclass(frozen=True)
class _View:
    """The shards of one view: ``index``, the image numbers of all of them, and
    ``starts``, the place of each shard's first row.
    """

    shards: list[CacheShard]
    index: Int64[np.ndarray, " images"]
    starts: Int64[np.ndarray, " shards"]

    @staticmethod
    def build(shards: list[CacheShard], others: Sequence["_View"]) -> "_View":
        shards = sorted(shards, key=lambda shard: shard.index[:1].tolist())
        index = np.concatenate([shard.index for shard in shards])
        if (np.diff(index) <= 0).any():
            raise RunError(
                f"Shards of the teacher's cache hold the same images: {str(shards[0].folder)!r} and"
                f" others of view {shards[0].view}. Remove them. {_REPEAT}."
            )
        # views of the same images share one copy of the numbers
        index = next((view.index for view in others if np.array_equal(view.index, index)), index)
        lengths = [len(shard.index) for shard in shards]
        for shard, start in zip(shards, np.cumsum([0, *lengths]), strict=False):
            shard.index = index[start : start + len(shard.index)]
        return _View(shards, index, np.cumsum([0, *lengths[:-1]]))

    def find(self, images: Int64[np.ndarray, " batch"]) -> Int64[np.ndarray, " batch"]:
        """The places of images, or any place for an image that is not there."""
        places = np.searchsorted(self.index, images)
        limited: Int64[np.ndarray, " batch"] = np.minimum(places, len(self.index) - 1)
        return limited


def _describe(shard: CacheShard) -> str:
    teacher = shard.teacher
    return f"{teacher['name']} (sha256 {teacher['sha256'][:16]}) in the format {shard.format.name}"
