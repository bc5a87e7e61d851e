"""The table of faults, from the outcomes of tests that passed on the same sources.

The tests take an hour. The outcome of each is kept in a file of these sources as soon
as it has passed, so that tests can run in several parts, and go on after an
interruption.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = ("kd_app", "conf", "hydra_plugins", "tests", "constraints.txt")
"""What decides how a test ends."""

HEAD: Final = """# Faults

Each row is a fault that a test in `tests/faults` caused in the real command: how often, what the
command did, and what was lost. A test writes its row after all its assertions have held.
`make faults` runs the tests and writes this file.

| fault | how often | what happened | what was lost |
|---|---|---|---|
"""


def hash_sources(root: Path) -> str:
    """The sha256 of the names and contents of all sources."""
    digest = hashlib.sha256()
    for name in SOURCES:
        files = (root / name).rglob("*.*") if (root / name).is_dir() else [root / name]
        for path in sorted(path for path in files if path.suffix != ".pyc" and path.is_file()):
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def build_table(outcomes: Sequence[Sequence[Any]]) -> str:
    """Rows of the same words are one row, with the sum of how often."""
    times: dict[tuple[str, str, str], int] = {}
    for fault, happened, lost, count in outcomes:
        times[fault, happened, lost] = times.get((fault, happened, lost), 0) + count
    cells = [(fault, f"{n:,}", happened, lost) for (fault, happened, lost), n in times.items()]
    rows = (" | ".join(cell.replace("|", r"\|") for cell in row) for row in sorted(cells))
    return HEAD + "".join(f"| {row} |\n" for row in rows)


class FaultTable:
    """Leaves out the tests that have passed on these sources, keeps the outcomes of the
    others, and writes the table when none is missing.

    path: of the table. store: the folder of the outcomes. is_whole: all tests of the
    folder are collected. writes: only one of several test processes does.
    """

    def __init__(self, path: Path, store: Path, *, is_whole: bool, writes: bool) -> None:
        self._path, self._is_whole, self._writes = path, is_whole, writes
        self._sources = hash_sources(ROOT)
        self._file = store / f"{self._sources}.jsonl"
        self._outcomes: dict[str, list[Any]] = {}
        self._passed: dict[str, list[Any]] = {}
        if self._file.exists():
            lines = self._file.read_text(encoding="utf-8").splitlines()
            self._outcomes = dict(json.loads(line) for line in lines)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out the tests that have passed."""
        config.hook.pytest_deselected(
            items=[item for item in items if item.nodeid in self._outcomes]
        )
        items[:] = [item for item in items if item.nodeid not in self._outcomes]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the outcome of a test that passed, in whichever process it ran."""
        if not self._writes or not report.passed:
            return
        if report.when == "call":
            rows = [value for name, value in report.user_properties if name == "fault"]
            self._passed[report.nodeid] = rows
        elif report.when == "teardown" and report.nodeid in self._passed:
            rows = self._outcomes[report.nodeid] = self._passed.pop(report.nodeid)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps([report.nodeid, rows])}\n")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the table when all tests of the folder have passed."""
        if not self._writes:
            return
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self._outcomes:
            exitstatus = session.exitstatus = pytest.ExitCode.OK
        if self._is_whole and exitstatus == 0 and hash_sources(ROOT) == self._sources:
            outcomes = [row for rows in self._outcomes.values() for row in rows]
            self._path.write_text(build_table(outcomes), encoding="utf-8")
