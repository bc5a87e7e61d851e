"""Outcomes of tests are kept until all have passed on the same sources."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults import fault_table
from tests.faults.fault_table import FaultTable, hash_sources


def test_the_hash_of_the_sources_follows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "constraints.txt").write_text("a", encoding="utf-8")
    hashes = [hash_sources(tmp_path)]
    (tmp_path / "conf" / "a.yaml").write_text("a: 1", encoding="utf-8")
    hashes.append(hash_sources(tmp_path))
    (tmp_path / "conf" / "a.yaml").write_text("a: 2", encoding="utf-8")
    hashes.append(hash_sources(tmp_path))
    assert len(set(hashes)) == 3


def _run(table: FaultTable, *names: str, fails: bool = False) -> list[str]:
    """Run the tests of these names, and return which of them were not left out."""
    config: Any = SimpleNamespace(hook=SimpleNamespace(pytest_deselected=lambda items: None))
    items: list[Any] = [SimpleNamespace(nodeid=name) for name in names]
    table.pytest_collection_modifyitems(config, items)
    for item in items:
        rows = [("fault", ["a | fault", "happened", "nothing", 2])]
        for when, passed in (("setup", True), ("call", True), ("teardown", not fails)):
            report: Any = SimpleNamespace(
                when=when, passed=passed, nodeid=item.nodeid, user_properties=rows
            )
            table.pytest_runtest_logreport(report)
    session: Any = SimpleNamespace(exitstatus=0)
    table.pytest_sessionfinish(session, int(fails) if items else 5)
    assert session.exitstatus == 0
    return [item.nodeid for item in items]


def test_the_table_is_written_when_all_have_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = "a"
    monkeypatch.setattr(fault_table, "hash_sources", lambda _: sources)
    path = tmp_path / "faults.md"

    def table(*, is_whole: bool = True) -> FaultTable:
        return FaultTable(path, tmp_path / "kept", is_whole=is_whole, writes=True)

    assert _run(table(is_whole=False), "x") == ["x"]
    assert _run(table(), "x", "y", fails=True) == ["y"]
    assert not path.exists()
    assert _run(table(), "x", "y") == ["y"]
    last = path.read_text(encoding="utf-8").splitlines()[-1]
    assert last == r"| a \| fault | 4 | happened | nothing |"
    path.unlink()
    assert _run(table(), "x", "y") == []
    assert path.exists()
    sources = "b"
    assert _run(table(), "x", "y") == ["x", "y"]
