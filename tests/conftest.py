"""One thread per test process, because the tests run in parallel; slow tests first."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gc

import pytest
import torch

torch.set_num_threads(1)

LONG = (
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


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of every later garbage collection, which would
    cost a third of a second each time.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort slow tests to the front."""
    items.sort(
        key=lambda item: next(
            (place for place, name in enumerate(LONG) if name in item.nodeid), len(LONG)
        )
    )
