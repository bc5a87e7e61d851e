"""Name and instruction sets of the CPU; standard library only."""

import platform
from pathlib import Path


def read_cpu_flags() -> frozenset[str]:
    """The CPU's instruction sets; empty if the operating system does not list them."""
    return frozenset(_read_cpu_info("flags", "Features").split())


def read_cpu_name() -> str:
    """The CPU's name, or its architecture if the name is not available."""
    return _read_cpu_info("model name") or platform.processor() or platform.machine()


def describe_machine() -> str:
    """Describe this machine, such as 'Intel(R) Xeon(R) Processor, x86_64'."""
    name, architecture = read_cpu_name(), platform.machine()
    return name if architecture in name else f"{name}, {architecture}"


def _read_cpu_info(*names: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(names)), "")
