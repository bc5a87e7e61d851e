"""The working directory of the commands' tests, and the files that kd-export writes
from the finished run.
"""

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from tests.commands.call import done
from tests.commands.conftest import _cwd

__all__ = ["_cwd"]

QUICK = (
    "benchmark.seconds=0.02",
    "benchmark.rounds=6",
    "benchmark.batch_sizes=[1,4]",
    "calibration_images=8",
    "compared_images=8",
)


def exported(*overrides: str) -> str:
    """The output of kd-export, with short timings."""
    return done(*overrides, *QUICK, command="kd-export")


@pytest.fixture(scope="session")
def both(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Student and teacher of a copy of the finished run as ONNX files, and the output.
    The copy and its stages are beside the files; all test processes share them.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "both"
    run, stages, out, output = (folder / name for name in ("run", "stages", "export", "output"))
    with FileLock(f"{folder}.lock"):
        if not output.exists():
            shutil.copytree(made, folder)
            text = exported(f"run={run}", f"stages={stages}", f"out={out}", "role=both")
            output.write_text(text, encoding="utf-8")
    return out, output.read_text(encoding="utf-8")
