"""A mark that no payload may leave, and a copy of the finished run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.conftest import _cwd, run

__all__ = ["_cwd", "run"]


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """The file that a payload would make; it is not there when the test ends."""
    path = tmp_path / "mark"
    yield path
    assert not path.exists()
