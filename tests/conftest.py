"""One thread a test process: the tests share their cores with each other, and what they
assert does not depend on it.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

torch.set_num_threads(1)

LONG = (
    "test_ranks",
    "test_searches",
    "test_readme",
    "test_processes",
    "test_resume",
    "test_notebooks",
    "faults",
)
"""Files that take long begin first, so that no process is left alone with one at the
end.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the long ones to the front."""
    items.sort(
        key=lambda item: next(
            (place for place, name in enumerate(LONG) if name in item.nodeid), len(LONG)
        )
    )
