"""Every test here injects a fault into the real command, and tells what came of it when
all that it asserts has held. ``make faults`` makes a table of what was told.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.commands.call import done
from tests.commands.conftest import _cwd, photos, run  # noqa: F401
from tests.faults.disk import Disk
from tests.faults.whole_run import WORDS, places

TABLE = "KD_FAULTS"
"""Environment variable: the file that the table is written to."""

HEAD = """# Faults

Each row is a fault that a test in `tests/faults` caused in the real command: how often, what the
command did, and what was lost. A test writes its row after all its assertions have held.
`make faults` runs the tests and writes this file.

| fault | how often | what happened | what was lost |
|---|---|---|---|
"""

Row = tuple[str, str, str]
_told: dict[Row, int] = {}


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


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Gather what the tests told that passed, in whichever process they ran."""
    rows: list[Any] = [value for name, value in report.user_properties if name == "fault"]
    for fault, happened, lost, times in rows if report.when == "call" and report.passed else ():
        _told[fault, happened, lost] = _told.get((fault, happened, lost), 0) + times


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the table when all have passed."""
    path = os.environ.get(TABLE)
    if path and exitstatus == 0 and not hasattr(session.config, "workerinput"):
        rows = [
            f"| {fault} | {times} | {happened} | {lost} |\n"
            for (fault, happened, lost), times in sorted(_told.items())
        ]
        Path(path).write_text(HEAD + "".join(rows), encoding="utf-8")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """An own disk, which holds nothing yet."""
    (tmp_path / "disk").mkdir()
    disk = Disk(tmp_path / "disk")
    yield disk
    disk.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to; nobody writes there."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done(*WORDS, *places(folder))
    return folder
