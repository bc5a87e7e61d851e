"""From nothing to the first answer."""

from pathlib import Path

import numpy as np
import pytest

from kd_app.config import RunError
from kd_app.deployment.cold_start import measure_cold_start
from tests.deployment.artifacts import open_text

MEGABYTE = 2**20


def test_opening_and_answering_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    """What this process has in memory is none of the file's."""
    ballast = np.ones(200 * MEGABYTE, dtype=np.uint8)
    (tmp_path / "model").write_text(f"0.05 {50 * MEGABYTE}")
    found = measure_cold_start(tmp_path / "model", (2, 3, 4, 5), open_text)
    assert ballast.nbytes > found["peak_memory_bytes"] > 50 * MEGABYTE
    assert 0.05 <= found["start_seconds"] < found["cold_start_seconds"] < 60


def test_a_file_that_gives_no_answer_is_told_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("nonsense")
    with pytest.raises(RunError, match="not enough values to unpack"):
        measure_cold_start(tmp_path / "model", (2, 3, 4, 5), open_text)
