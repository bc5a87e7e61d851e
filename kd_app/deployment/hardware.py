"""The processor that figures are measured on; standard library only."""

import platform
from pathlib import Path


def read_cpu_flags() -> frozenset[str]:
    """The processor's instruction sets as the operating system names them; empty where
    it does not say.
    """
    return frozenset(_read_cpu_info("flags", "Features").split())


def read_cpu_name() -> str:
    """The processor's name; that of its architecture where the operating system says no
    more.
    """
    return _read_cpu_info("model name") or platform.processor() or platform.machine()


def describe_machine() -> str:
    """'Intel(R) Xeon(R) Processor, x86_64': what figures of this machine are called."""
    name, architecture = read_cpu_name(), platform.machine()
    return name if architecture in name else f"{name}, {architecture}"


def _read_cpu_info(*names: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(names)), "")
