"""One thread per test process, because the tests run in parallel; slow tests first; and
a finished run that many tests look at.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gc
import shutil
import signal
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from xdist.scheduler import LoadFileScheduling

MEMORY = Path("/dev/shm")
_ENOUGH = 4_000_000_000
"""Bytes; the tests write a ninth of it."""
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > _ENOUGH:
    # tens of thousands of small files, which a disk takes long to write and to remove
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

LONG = (
    "test_kill",
    "test_ranks",
    "test_searches",
    "test_cascade",
    "test_compress",
    "test_teachers",
    "test_sweeps",
    "test_going_on",
    "test_licenses",
    "security/test_runs",
    "test_evaluate_again",
    "test_predict",
    "test_processes",
    "test_resume",
    "test_notebooks",
    "faults",
)
"""Files with slow tests, which start first so that the processes end together."""

EXPORTING = (
    "tests/jobs/",
    "tests/compression/",
    "tests/deployment/",
    "tests/run/test_exported_files",
    "tests/run/test_latency_check",
    "tests/test_exports_table",
)
"""Tests that share a process: importing what writes programs takes ten seconds of
each.
"""

# a shell starts background jobs with Ctrl-C ignored, and nohup with SIGHUP ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


class FolderScheduling(LoadFileScheduling):  # type: ignore[misc]
    """Each file is left to one process, and all files that export to one."""

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(EXPORTING):
            return EXPORTING[0]
        return str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FolderScheduling | None:
    """Distribute the tests with ``--dist loadfile``."""
    return FolderScheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_xdist_auto_num_workers() -> int:
    """One process a core: the imports and the list of tests of another one cost more
    than the waits that it fills.
    """
    return os.cpu_count() or 1


def pytest_configure(config: pytest.Config) -> None:
    """Prepare a process that runs tests. One that hands them to others imports nothing:
    they would wait for it.
    """
    is_worker = hasattr(config, "workerinput")
    if is_worker or not config.getoption("numprocesses"):
        _prepare_process(examples=30 if "not slow" in config.getoption("markexpr") else 100)


def _prepare_process(examples: int) -> None:
    """Compose from kept parts in each test process, look for copies among the same
    images once, list what is installed once (Lightning looks for callbacks of other
    packages for each trainer), look for a GPU once, and let the system choose when
    files get to the disk. examples: of a property that states no number of its own.
    """
    # not above: jaxtyping has to see kd_app imported after this file
    import hypothesis
    import torch
    from lightning.fabric.utilities import registry

    from tests.composition_cache import keep_compositions
    from tests.contents_cache import keep_contents

    torch.set_num_threads(1)
    # how long an example takes says how busy the machine is
    hypothesis.settings.register_profile("tests", deadline=None, max_examples=examples)
    hypothesis.settings.load_profile("tests")
    keep_compositions()
    keep_contents()
    patch.object(registry, "entry_points", cache(entry_points)).start()
    patch.object(os, "fsync", lambda _: None).start()
    count_devices = cache(torch.cuda._raw_device_count_nvml)
    patch.object(torch.cuda, "_raw_device_count_nvml", count_devices).start()
    if not torch.cuda.is_available():
        for absent in (torch.cuda, torch.xpu, torch.mtia):
            # torch would note a seed, and who set it, until such a device is there
            patch.object(absent, "manual_seed_all", lambda _: None).start()


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of every later garbage collection, which would
    cost a third of a second each time, and collect less often.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def pytest_unconfigure() -> None:
    """Leave out what pytest would collect at the end: it takes seconds of each process,
    whose memory is freed as a whole.
    """
    gc.freeze()


@pytest.fixture(scope="session")
def sample_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run in ``run`` and its stages in ``stages``; nobody
    writes there.
    """
    # not above: jaxtyping has to see kd_app imported after this file
    from tests.commands.call import TINY, succeed

    folder = tmp_path_factory.mktemp("made")
    succeed(*TINY, f"out={folder / 'run'}", f"stages={folder / 'stages'}")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort slow tests to the front."""
    items.sort(
        key=lambda item: next(
            (place for place, name in enumerate(LONG) if name in item.nodeid), len(LONG)
        )
    )
