"""The working directory of the commands' tests, and the files that kd-export writes
from the finished run.
"""

from pathlib import Path

import pytest

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
    """Student and teacher of the finished run as ONNX files, and the output."""
    out = tmp_path_factory.mktemp("both") / "export"
    return out, exported(
        f"run={made / 'run'}", f"stages={made / 'stages'}", f"out={out}", "role=both"
    )
