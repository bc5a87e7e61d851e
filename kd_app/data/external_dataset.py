"""What the dataset of a user's loader states about its images without reading them."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from kd_app.data.fingerprint import WHOLE_LIMIT


def read_train_labels(loader: Any) -> Tensor | None:
    """Return the class numbers of a loader's images if its dataset states them, as
    torchvision's do (`targets`); None if they are only known by reading the images.
    """
    return _read_dataset_labels(getattr(loader, "dataset", None))


def _read_dataset_labels(dataset: Any) -> Tensor | None:
    if isinstance(dataset, Subset):
        labels = _read_dataset_labels(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(list(dataset.indices))]
    if isinstance(dataset, TensorDataset):
        labels = dataset.tensors[-1]
    elif getattr(dataset, "target_transform", None) is None:
        labels = getattr(dataset, "targets", None)
    else:
        return None
    try:
        numbers = torch.as_tensor(labels)
        is_label = numbers.dim() == 1 and len(numbers) == len(dataset)
    except (TypeError, ValueError, RuntimeError):
        return None
    return numbers.long() if is_label and not numbers.is_floating_point() else None


def hash_contents(loader: Any) -> bytes:
    """Return the sha256 of what a loader's dataset has for each of its images.

    These are attributes as long as the dataset: tensors, arrays, and lists of files or
    of tuples that begin with a file, of which names and sizes are hashed.
    """
    digest = hashlib.sha256()
    for part in _iterate_contents(getattr(loader, "dataset", None)):
        digest.update(part)
    return digest.digest()


def _iterate_contents(dataset: Any) -> Iterator[bytes]:
    if isinstance(dataset, Subset):
        yield np.asarray(list(dataset.indices)).tobytes()
        yield from _iterate_contents(dataset.dataset)
    elif isinstance(dataset, ConcatDataset):
        for each in dataset.datasets:
            yield from _iterate_contents(each)
    elif isinstance(dataset, TensorDataset):
        yield from map(_hash_array, dataset.tensors)
    else:
        length = _count(dataset)
        values = {id(value): value for value in getattr(dataset, "__dict__", {}).values()}
        for value in values.values():
            if isinstance(value, list) and len(value) == length:
                yield from _describe_files(value)
            elif isinstance(value, Tensor | np.ndarray) and length == _count(value) is not None:
                yield _hash_array(value)


def _count(value: Any) -> int | None:
    """The length of a dataset or an array; None for a stream and a single number."""
    try:
        return len(value)
    except (TypeError, NotImplementedError):
        return None


def _hash_array(array: Tensor | np.ndarray) -> bytes:
    """Return the sha256 of an array; of a very large one, of equally spaced rows."""
    if isinstance(array, Tensor) and array.layout != torch.strided:
        return b""
    rows = array[:: 1 + array.nbytes // WHOLE_LIMIT]
    if isinstance(rows, Tensor):
        rows = rows.detach().cpu().flatten().view(torch.uint8).numpy()
    # An array of objects holds their addresses.
    return b"" if rows.dtype.hasobject else hashlib.sha256(rows.tobytes()).digest()


def _describe_files(entries: list[Any]) -> Iterator[bytes]:
    """Yield folder, name and size of each file."""
    for entry in entries:
        file = entry[0] if isinstance(entry, tuple) and entry else entry
        if isinstance(file, str | Path):
            size = os.path.getsize(file) if os.path.isfile(file) else 0
            name = "/".join(Path(file).parts[-2:])
            yield f"{name}\0{size}\0".encode(errors="surrogateescape")
