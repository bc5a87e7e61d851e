"""Shards of made-up logits, and batches that read them."""

from pathlib import Path

import numpy as np
import torch

from kd_app.data.batch import Batch
from kd_app.models.outputs import Outputs
from kd_app.teacher_outputs.cache import CachedTeacherModel, ShardRecord, TeacherCache, write_record
from kd_app.teacher_outputs.format import CacheFormat, Int8Format


def shard(folder: Path, view: int, images: list[int], *, sha256: str = "a") -> Path:
    """A shard of made-up logits: ``100 * view + image`` for the first class."""
    logits = torch.zeros(len(images), 3)
    logits[:, 0] = 100.0 * view + torch.tensor(images)
    return write_shard(folder, Int8Format(3), Outputs(logits=logits), view, images, sha256)


def write_shard(
    folder: Path,
    format: CacheFormat,
    outputs: Outputs,
    view: int,
    images: list[int],
    sha256: str = "a",
) -> Path:
    folder.mkdir()
    (folder / "rows.bin").write_bytes(format.encode(outputs).numpy().tobytes())
    np.save(folder / "index.npy", np.array(images, np.int64))
    model = CachedTeacherModel(name="net", sha256=sha256, license="mit")
    record = ShardRecord(
        format=format.name, width=format.width, view=view, images=len(images), teacher=model
    )
    write_record(folder, record)
    return folder


def view_batch(images: list[int], view: int = 0) -> Batch:
    return Batch(
        torch.zeros(len(images)), torch.zeros(len(images)), torch.tensor(images), view=view
    )


def select(cache: TeacherCache, images: list[int], view: int = 0) -> list[float]:
    logits = cache.select(view_batch(images, view)).logits
    assert logits is not None
    return logits[:, 0].tolist()
