"""Tests of the memory that a process keeps from step to step."""

import resource

import pytest
import torch

from kd_app.training.cpu_memory import keep_freed_memory

PAGE = resource.getpagesize()
CPU = torch.device("cpu")


def count_page_faults(size: int, times: int) -> int:
    """Return how many pages the system gave to tensors of `size` bytes, one by one."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(size, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.parametrize("size", [40 << 20, 200 << 20])
def test_the_memory_of_a_large_tensor_is_mostly_used_again(size: int) -> None:
    assert keep_freed_memory(CPU)
    assert count_page_faults(size, 30) < 15 * size // PAGE


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert not keep_freed_memory(CPU)
    monkeypatch.setattr("sys.platform", "darwin")
    assert not keep_freed_memory(CPU)


def test_a_process_that_trains_on_a_gpu_is_left_alone() -> None:
    assert not keep_freed_memory(torch.device("cuda"))
