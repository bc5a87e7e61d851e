"""The finished run and the working directory that the commands' tests have, and that
run's models as files.
"""

from pathlib import Path

import pytest

from tests.commands.call import done
from tests.commands.conftest import _cwd, made

__all__ = ["_cwd", "made"]

QUICK = (
    "benchmark.seconds=0.02",
    "benchmark.rounds=6",
    "benchmark.batch_sizes=[1,4]",
    "calibration_images=8",
    "compared_images=8",
)


def exported(*words: str) -> str:
    """What kd-export said, timed for a moment only."""
    return done(*words, *QUICK, command="kd-export")


@pytest.fixture(scope="session")
def both(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Student and teacher of the made run as ONNX files, and what the command said."""
    out = tmp_path_factory.mktemp("both") / "export"
    return out, exported(
        f"run={made / 'run'}", f"stages={made / 'stages'}", f"out={out}", "role=both"
    )
