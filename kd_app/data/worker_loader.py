"""Reading of batches from the worker processes of a torch loader: signals, lost and
silent workers, and little shared memory.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kd_app.config import RunError
from kd_app.data.batch import Batch
from kd_app.signals import block_signals, leave_signals_to_parent

_SHARED_MEMORY = "/dev/shm"
_LITTLE = 2**20
"""Free bytes of shared memory with which a silent worker could not send a batch."""
_ADVICE = (
    f"Give the container more shared memory ({_SHARED_MEMORY}), for example with docker's"
    " --shm-size=1g, or load images in the main process: data.num_workers=0."
)
_TIMEOUT_SECONDS, _MOST_TIMEOUTS = 30, 20
"""A worker may need 10 minutes for a batch. Counted in several timeouts, because one
also passes while all processes are suspended (Ctrl-Z).
"""
_NOTES: set[str] = set()


@dataclass(frozen=True)
class _WorkerStart:
    """Called in a new worker process: leaves signals to the main process, then calls
    the loader's own function.
    """

    then: Callable[[int], None] | None

    def __call__(self, number: int) -> None:
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid is not None:
            leave_signals_to_parent(parent.pid)
        if self.then is not None:
            self.then(number)


def iterate_workers(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the items of a loader.

    Raises `RunError` if a worker process dies or is silent for 10 minutes, and
    `OSError` if the processes can't be started.
    """
    if not loader.num_workers:
        yield from loader
        return
    iterator = _start(loader)
    timeouts = 0
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if "timed out after" in str(error) and loader.timeout == 0:
                timeouts += 1
                _check_silence(timeouts)
                continue
            raise explain_lost_worker(error) or error from error
        timeouts = 0
        yield item


def _start(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start the worker processes, which leave stop signals to this process."""
    if loader._iterator is None:
        _check_semaphores(loader)
    before = loader.timeout, loader.worker_init_fn
    loader.timeout = before[0] or _TIMEOUT_SECONDS
    loader.worker_init_fn = _WorkerStart(before[1])
    try:
        with block_signals():
            return iter(loader)
    finally:
        loader.timeout, loader.worker_init_fn = before


def _check_semaphores(loader: DataLoader[Any]) -> None:
    """Raise `OSError` if the system has no room for the queues of the processes, which
    torch would create one after the other.
    """
    context = loader.multiprocessing_context or multiprocessing.get_context()
    context.Event()
    for queue in [context.Queue() for _ in range(loader.num_workers + 1)]:
        queue.close()


def _check_silence(timeouts: int) -> None:
    """Raise `RunError` if the workers can't send, or have been silent for too long."""
    free = _count_free_shared_memory()
    if free is not None and free < _LITTLE:
        raise RunError(
            f"The processes that load images sent nothing for {timeouts * _TIMEOUT_SECONDS} s, and"
            f" only {free // 1024} KiB of shared memory are free, through which they send."
            f" {_ADVICE}"
        )
    if timeouts >= _MOST_TIMEOUTS:
        raise RunError(
            f"The processes that load images sent nothing for {timeouts * _TIMEOUT_SECONDS // 60}"
            " minutes. The disk or network with the images may not answer, or a process hangs."
            " Completed work is kept: repeat the command to resume, with data.num_workers=0 to"
            " load images in the main process."
        )


def explain_lost_worker(error: RuntimeError) -> RunError | None:
    """The failure of a training whose loader lost a worker process; None for another
    error.
    """
    text = str(error).strip()
    if "DataLoader worker" not in text or "Traceback" in text:
        return None
    if "Bus error" in text or "shared memory" in text:
        return RunError(f"A process that loads images ran out of shared memory. {_ADVICE}")
    return RunError(
        f"{text} That process loaded images; the system kills such processes when memory runs out."
        " The training so far is saved. Repeat the command to resume, with data.num_workers=0 to"
        " load images in the main process."
    )


def note_no_workers(error: OSError) -> None:
    """Print that images are loaded in this process, because no other can be started."""
    _print_once(
        f"Note: no processes to load images could be started ({error.strerror or error}), so this"
        f" process loads them, which is slower. The reason may be {_SHARED_MEMORY}. {_ADVICE}"
    )


@dataclass(frozen=True)
class PipedBatch:
    """A batch without shared memory: its tensors as arrays, images with channels last,
    and its other fields.
    """

    arrays: dict[str, np.ndarray]
    rest: dict[str, Any]

    def unpack(self) -> Batch:
        """Return the batch, and print once that it came through a pipe."""
        free = _count_free_shared_memory()
        room = "" if free is None else f" ({free // 1024} KiB are free)"
        _print_once(
            f"Note: the shared memory of this machine{room} is too small for batches, so they come"
            f" through pipes, which is slower. {_ADVICE}"
        )
        tensors = {name: torch.from_numpy(array) for name, array in self.arrays.items()}
        fields: dict[str, Any] = {
            name: tensor.permute(0, 3, 1, 2) if tensor.dim() == 4 else tensor
            for name, tensor in tensors.items()
        }
        return Batch(**fields, **self.rest)


def pack_batch(batch: Batch) -> Batch | PipedBatch:
    """Move a batch into shared memory, in a worker process, or into arrays if there is
    no room. Without this, torch moves it later, where a failure is lost.
    """
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    try:
        for tensor in tensors.values():
            tensor.share_memory_()
    except (RuntimeError, OSError):
        arrays = {name: _to_array(tensor) for name, tensor in tensors.items()}
        rest = {name: value for name, value in vars(batch).items() if name not in tensors}
        return PipedBatch(arrays, rest)
    return batch


def _to_array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(
        (tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor).numpy()
    )


def _count_free_shared_memory() -> int | None:
    try:
        status = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def _print_once(text: str) -> None:
    key = text.partition("(")[0]
    if key not in _NOTES:
        _NOTES.add(key)
        print(text, file=sys.stderr)
