"""A working directory of one's own, and a copy of the finished run."""

import shutil
from pathlib import Path

import pytest

from tests.builders import image_folder


@pytest.fixture(autouse=True)
def _cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def run(sample_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change; its stages stay in place."""
    return Path(shutil.copytree(sample_run / "run", tmp_path / "here" / "run"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of color images; nobody writes there."""
    return image_folder(tmp_path_factory.mktemp("photos") / "photos", images=12, classes=3, side=16)
