"""The environment of a run in its results."""

import subprocess
from importlib.metadata import version
from pathlib import Path

import kd_app
from kd_app.run.environment import describe_environment, find_commit
from tests.training.test_trainer import settings


def commit(folder: Path) -> str:
    """The commit of a new repository that holds one package."""
    (folder / "__init__.py").write_text("")
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return head.stdout.strip()


def test_the_environment_names_versions_hardware_and_precision() -> None:
    environment = describe_environment(settings(precision="32-true"))
    assert environment["kd_app"] == kd_app.__version__
    assert environment["torch"] == version("torch")
    assert (environment["accelerator"], environment["precision"]) == ("cpu", "32-true")
    assert environment["device"]


def test_a_commit_is_named_and_changes_since_then_are_marked(tmp_path: Path) -> None:
    head = commit(tmp_path)
    assert find_commit(tmp_path) == head
    (tmp_path / "__init__.py").write_text("changed = True")
    find_commit.cache_clear()
    assert find_commit(tmp_path) == f"{head}+changes"


def test_a_package_that_is_no_checkout_has_no_commit(tmp_path: Path) -> None:
    assert find_commit(tmp_path) is None
