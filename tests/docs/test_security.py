"""The page on security names tests and modules that exist."""

import re
from pathlib import Path

import pytest

from kd_app.config.compose import compose_config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "`tests/" in line]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_each_row_names_its_tests(row: str) -> None:
    names = re.findall(r"`(tests/[\w/.]+)`", row.split("|")[-2])
    assert names
    assert all((ROOT / name).exists() for name in names), names


def test_every_kind_of_file_that_is_read_has_a_row() -> None:
    assert len(ROWS) >= 12
    for name in ("config.yaml", "search.json", "results.json", "weights", "stages", "images"):
        assert any(name in row.split("|")[1] for row in ROWS), name


def test_the_ways_to_allow_more_compose() -> None:
    for value, expected in (
        ("[their_package]", "their_package"),
        ('["hf-hub:someone/net"]', "hf-hub:someone/net"),
    ):
        assert f"'allow={value}'" in PAGE
        config = compose_config("evaluate", ["run=a", "out=b", f"allow={value}"])
        assert config["allow"] == [expected]
