"""Running out of memory is one paragraph with a number."""

import errno

import pytest
import torch

from kd_app.config import RequestError, RunError
from kd_app.config.memory import (
    MemorySettings,
    describe_shortage,
    explain_memory_error,
    is_out_of_memory,
    read_available_memory,
    read_total_memory,
    suggest_batch_size,
)

CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you"
    " tried to allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)"
)
GPU = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.89 GiB of"
    " which 1.50 GiB is free. Including non-PyTorch memory, this process has 14.3 GiB in use."
)
CONFIG = {
    "data": {"batch_size": 64},
    "trainer": {"accumulate_grad_batches": 1, "precision": "32-true"},
}


@pytest.mark.parametrize(
    "error",
    [
        CPU,
        GPU,
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_every_allocator_is_recognized_also_as_the_cause(error: Exception) -> None:
    assert is_out_of_memory(error)
    wrapped = ValueError("in another library")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped)


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), OSError(errno.ENOSPC, "disk full"), KeyError("a")]
)
def test_other_errors_pass_unchanged(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)), explain_memory_error("the stage x", CONFIG):
        raise error


def test_the_paragraph_names_the_step_the_memory_and_smaller_settings() -> None:
    with pytest.raises(RunError) as caught, explain_memory_error("the stage student", CONFIG):
        raise GPU
    assert str(caught.value) == (
        "Memory ran out in the stage student: it asked for 2.0 GiB, and 1.5 GiB of 15.89 GiB were"
        " free on the GPU. Set data.batch_size=4 (now 64) and trainer.accumulate_grad_batches=16"
        " for steps of the same size. trainer.precision=bf16-mixed (now 32-true) takes about half."
        " If that is not enough: a smaller data.image_size, a smaller model, or fewer"
        " data.num_workers. Finished stages are kept."
    )


def test_on_a_cpu_the_machines_memory_is_reported() -> None:
    text = describe_shortage("x", CPU, MemorySettings(64))
    assert "it asked for 4.0 GiB, and " in text
    assert "free on this machine. Set data.batch_size=" in text
    assert "data.batch_size=16" in describe_shortage("x", MemoryError(), MemorySettings())


@pytest.mark.parametrize(
    ("batch_size", "images", "tried", "smaller"),
    [
        (64, None, None, 32),
        (100, None, None, 32),
        (100_000, 240, None, 64),
        (100_000, 240, 2**34, 4),
        (64, None, 2**40, 1),
        (1, None, None, None),
        (64, 1, None, None),
    ],
)
def test_the_suggested_batch_is_at_most_half(
    batch_size: int, images: int | None, tried: int | None, smaller: int | None
) -> None:
    settings = MemorySettings(batch_size, 1, "32-true", images)
    assert suggest_batch_size(settings, tried, 2**32) == smaller


def test_a_wrong_request_and_a_failed_run_pass_unchanged() -> None:
    for error in (RequestError("out of memory"), RunError("out of memory")):
        with pytest.raises(type(error), match=r"^out of memory$"), explain_memory_error("x", {}):
            raise error from GPU


def test_the_memory_of_this_machine_is_plausible() -> None:
    assert 2**26 < read_available_memory() <= read_total_memory() < 2**50
