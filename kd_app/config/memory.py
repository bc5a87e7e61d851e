"""Running out of memory: how it is recognized, and one paragraph with a way forward."""

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_app.config.errors import RequestError, RunError, list_causes

_SIGNS = re.compile(
    r"out of memory|(?:can't|cannot|could not|failed to|unable to) allocate|not enough memory"
    r"|OUT_OF_MEMORY|ALLOC_FAILED|bad_alloc|paging file is too small",
    re.IGNORECASE,
)
"""In messages of torch (CPU, CUDA, cuDNN, cuBLAS, MPS), numpy and onnxruntime."""
_TRIED = re.compile(
    r"(?:tried to allocate|unable to allocate)\s+([\d.]+)\s*(bytes|[KMGT]i?B)", re.IGNORECASE
)
_GPU = re.compile(r"total capacity of ([\d.]+ [KMGT]iB) of which ([\d.]+ [KMGT]iB) is free")
_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_FLOAT32 = ("32", "32-true", "64", "64-true")
_SAFETY = 8
"""A single tensor of a training step is allowed this fraction of the free memory."""


@dataclass(frozen=True)
class MemorySettings:
    """The settings that decide how much memory a step takes.

    images: number of training images, if known, which bounds the size of a batch.
    """

    batch_size: int | None = None
    accumulate: int | None = None
    precision: str = ""
    images: int | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], images: int | None = None) -> "MemorySettings":
        """The settings in the configuration of any command."""
        data, trainer = config.get("data") or {}, config.get("trainer") or {}
        batch_size = data.get("batch_size")
        return cls(
            batch_size if isinstance(batch_size, int) else None,
            trainer.get("accumulate_grad_batches"),
            str(trainer.get("precision", "")),
            images,
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the machine or of a GPU ran out."""
    return any(
        isinstance(each, MemoryError)
        or (isinstance(each, OSError) and each.errno == errno.ENOMEM)
        or (isinstance(each, RuntimeError) and _SIGNS.search(str(each)) is not None)
        for each in list_causes(error)
    )


@contextmanager
def explain_memory_error(
    step: str, config: Mapping[str, Any], images: int | None = None
) -> Iterator[None]:
    """Raise `RunError` with the paragraph if the body runs out of memory.

    step: what the body does, as a noun.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, RequestError | RunError) or not is_out_of_memory(error):
            raise
        settings = MemorySettings.from_config(config, images)
        raise RunError(describe_shortage(step, error, settings)) from error


def describe_shortage(step: str, error: BaseException, settings: MemorySettings) -> str:
    """The paragraph: which step, how much memory there was, and what to change."""
    text = " ".join(str(each) for each in list_causes(error))
    match = _TRIED.search(text)
    tried = _parse_bytes(*match.groups()) if match else None
    gpu = _GPU.search(text)
    available = _parse_bytes(*gpu[2].split()) if gpu else read_available_memory()
    total = gpu[1] if gpu else format_bytes(read_total_memory())
    need = f"it asked for {format_bytes(tried)}, and " if tried else ""
    place = "the GPU" if gpu or "CUDA" in text else "this machine"
    return (
        f"Memory ran out in {step}: {need}{format_bytes(available)} of {total} were free on"
        f" {place}. {_suggest_change(settings, tried, available)} Finished stages are kept."
    )


def _suggest_change(settings: MemorySettings, tried: int | None, available: int) -> str:
    """Sentences that name smaller settings."""
    sentences = []
    batch_size = settings.batch_size
    smaller = suggest_batch_size(settings, tried, available)
    if batch_size is not None and smaller is not None:
        images = min(batch_size, settings.images or batch_size)
        hint = f"Set data.batch_size={smaller} (now {batch_size})"
        if settings.accumulate is not None:
            steps = settings.accumulate * max(2, round(images / smaller))
            hint += f" and trainer.accumulate_grad_batches={steps} for steps of the same size"
        sentences.append(f"{hint}.")
    elif batch_size is None:
        sentences.append("Set a smaller data.batch_size, for example data.batch_size=16.")
    if settings.precision in _FLOAT32:
        sentences.append(
            f"trainer.precision=bf16-mixed (now {settings.precision}) takes about half."
        )
    sentences.append(
        "If that is not enough: a smaller data.image_size, a smaller model, or fewer"
        " data.num_workers."
    )
    return " ".join(sentences)


def suggest_batch_size(settings: MemorySettings, tried: int | None, available: int) -> int | None:
    """A power of two, at most half of the batch; less if the failed allocation alone is
    large compared with the free memory. None for a batch of one image.
    """
    images = min(settings.batch_size or 1, settings.images or settings.batch_size or 1)
    if images < 2:
        return None
    factor = max(2.0, _SAFETY * (tried or 0) / max(available, 1))
    return int(2 ** max(0, int(images / factor).bit_length() - 1))


def read_available_memory() -> int:
    """Return the available memory in bytes, within the limits of a container and of
    this process.
    """
    lines = dict(line.split(":", maxsplit=1) for line in _read_text("/proc/meminfo").splitlines())
    available = 4 * 2**30
    if "MemAvailable" in lines:
        available = int(lines["MemAvailable"].split()[0]) * 1024
    limit = _read_text("/sys/fs/cgroup/memory.max").strip()
    used = _read_text("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and used.isdigit():
        available = min(available, int(limit) - int(used))
    limit_of_process = _read_process_limit()
    if limit_of_process is not None:
        used_pages = _read_text("/proc/self/statm").split()[:1]
        used_bytes = int(used_pages[0]) * 4096 if used_pages else 0
        available = min(available, limit_of_process - used_bytes)
    return max(0, available)


def read_total_memory() -> int:
    """Return the memory in bytes that this process may use at most."""
    match = re.search(r"MemTotal:\s+(\d+)", _read_text("/proc/meminfo"))
    limits = [int(match[1]) * 1024] if match else []
    container = _read_text("/sys/fs/cgroup/memory.max").strip()
    limits += [int(container)] if container.isdigit() else []
    process = _read_process_limit()
    limits += [process] if process is not None else []
    return min(limits, default=read_available_memory())


def _read_process_limit() -> int | None:
    """The limit of ``ulimit -v`` in bytes; None without a limit."""
    try:
        import resource
    except ImportError:
        # not on Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


def _parse_bytes(number: str, unit: str) -> int:
    return int(float(number) * _UNITS[unit[0].upper()])


def format_bytes(size: float) -> str:
    """'1.5 GiB', or '20.0 MiB'."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
