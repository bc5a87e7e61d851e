"""Batches from worker processes, when they can't send, are lost, or are silent."""

import errno
import os
import subprocess
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_app.config import RunError
from kd_app.data import worker_loader
from kd_app.data.batch import Batch
from kd_app.data.worker_loader import (
    PipedBatch,
    explain_lost_worker,
    iterate_workers,
    pack_batch,
)
from tests.data.test_loader import same, training


@pytest.fixture
def full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared memory without room, and the notes that were not printed yet."""

    def fail(tensor: Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_0>")

    monkeypatch.setattr(Tensor, "share_memory_", fail)
    monkeypatch.setattr(worker_loader, "_NOTES", set())


def test_without_shared_memory_a_batch_comes_through_a_pipe(
    full_memory: None, capsys: pytest.CaptureFixture[str]
) -> None:
    image = torch.arange(24, dtype=torch.uint8).reshape(2, 2, 2, 3).permute(0, 3, 1, 2)
    batch = Batch(image, torch.tensor([1, 2]), torch.tensor([5, 3]), view=4)
    packed = pack_batch(batch)
    assert isinstance(packed, PipedBatch)
    unpacked = [packed.unpack() for _ in range(2)][1]
    assert torch.equal(unpacked.image, image)
    assert unpacked.image.is_contiguous(memory_format=torch.channels_last)
    assert (unpacked.target.tolist(), unpacked.index.tolist(), unpacked.view) == ([1, 2], [5, 3], 4)
    assert unpacked.other is None
    (note,) = capsys.readouterr().err.splitlines()
    assert "/dev/shm" in note
    assert "--shm-size=1g" in note


def test_workers_without_shared_memory_send_the_same_batches(full_memory: None) -> None:
    assert same(list(training(16, 8, workers=1)), list(training(16, 8)))


def test_without_room_for_queues_this_process_builds_the_batches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(loader: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(worker_loader, "_check_semaphores", fail)
    monkeypatch.setattr(worker_loader, "_NOTES", set())
    assert same(list(training(16, 8, workers=1)), list(training(16, 8)))
    assert "No space left on device" in capsys.readouterr().err


def test_a_sigterm_of_another_process_does_not_end_a_worker() -> None:
    loader = training(40, 8, workers=1)
    batches = iter(loader)
    first = next(batches)
    assert loader._stream._workers is not None
    iterator: Any = loader._stream._workers._iterator
    (worker,) = iterator._workers
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    os.kill(worker.pid, 10)  # SIGUSR1
    assert same([first, *batches], list(training(40, 8)))
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0


class SilentLoader(SimpleNamespace):
    """A loader whose workers send after a number of timeouts."""

    def __init__(self, timeouts: int) -> None:
        super().__init__(num_workers=1, timeout=0, worker_init_fn=None, _iterator=object())
        self.timeouts = timeouts

    def __iter__(self) -> "SilentLoader":
        assert self.timeout == 30
        return self

    def __next__(self) -> int:
        if self.timeouts < 0:
            raise StopIteration
        self.timeouts -= 1
        if self.timeouts >= 0:
            raise RuntimeError("DataLoader timed out after 30 seconds")
        return 1


def test_a_worker_may_be_silent_for_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_loader, "_count_free_shared_memory", lambda: 2**30)
    silent: Any = SilentLoader(19)
    assert list(iterate_workers(silent)) == [1]
    assert silent.timeout == 0
    silent = SilentLoader(20)
    with pytest.raises(RunError, match=r"sent nothing for 10 minutes.*data\.num_workers=0"):
        list(iterate_workers(silent))


def test_a_silent_worker_without_shared_memory_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_loader, "_count_free_shared_memory", lambda: 64 * 1024)
    silent: Any = SilentLoader(1)
    with pytest.raises(RunError, match=r"for 30 s, and only 64 KiB.*--shm-size"):
        list(iterate_workers(silent))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "when memory runs out"),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", "data.num_workers=0"),
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible", "/dev/shm"),
    ],
)
def test_a_lost_worker_is_a_failed_run(text: str, message: str) -> None:
    assert message in str(explain_lost_worker(RuntimeError(text)))


def test_other_errors_stay_what_they_are() -> None:
    assert explain_lost_worker(RuntimeError("shape mismatch")) is None
    assert explain_lost_worker(RuntimeError("DataLoader worker\nTraceback")) is None


def test_arrays_of_empty_batches_have_their_shape(full_memory: None) -> None:
    empty = Batch(torch.zeros(0, 3, 4, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    packed = pack_batch(empty)
    assert isinstance(packed, PipedBatch)
    assert packed.unpack().image.shape == (0, 3, 4, 4)
    assert np.shape(packed.arrays["target"]) == (0,)
