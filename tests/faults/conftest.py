"""Every test here injects a fault into the real command, and tells what came of it when
all that it asserts has held. ``make faults`` makes a table of the outcomes.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.commands.call import succeed
from tests.commands.conftest import _cwd, photos, run  # noqa: F401
from tests.faults.disk import Disk
from tests.faults.fault_table import FaultTable
from tests.faults.whole_run import WORDS, places

TABLE = "KD_FAULTS"
"""Environment variable: the file that the table is written to."""


class Fault(Protocol):
    """Tells of a fault, when everything about it has been asserted."""

    def __call__(self, fault: str, *, happened: str, lost: str, times: int = 1) -> None: ...


@pytest.fixture
def fault(record_property: Callable[[str, object], None]) -> Fault:
    """A row of the table. What several tests tell in the same words is one row, that
    many times.
    """

    def tell(fault: str, *, happened: str, lost: str, times: int = 1) -> None:
        record_property("fault", [fault, happened, lost, times])

    return tell


def pytest_configure(config: pytest.Config) -> None:
    """Make the table where one is asked for."""
    path = os.environ.get(TABLE)
    if path:
        folders = [Path(each).absolute() for each in config.args]
        options = ("keyword", "markexpr", "ignore", "ignore_glob", "deselect")
        is_chosen = any(map(config.getoption, options))
        table = FaultTable(
            Path(path),
            Path(".cache", "faults"),
            is_whole=folders == [Path(__file__).parent] and not is_chosen,
            writes=not hasattr(config, "workerinput"),
        )
        config.pluginmanager.register(table, "fault table")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """An own disk, which holds nothing yet."""
    (tmp_path / "disk").mkdir()
    disk = Disk(tmp_path / "disk")
    yield disk
    disk.close()


@pytest.fixture(scope="session")
def reference_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to; nobody writes there."""
    folder = tmp_path_factory.mktemp("undisturbed")
    succeed(*WORDS, *places(folder))
    return folder
