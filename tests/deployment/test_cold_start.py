"""Cold start of an exported file."""

from pathlib import Path

import numpy as np
import pytest

from kd_app.config import RunError
from kd_app.deployment.cold_start import measure_cold_start
from tests.deployment.artifacts import open_text

MEGABYTE = 2**20


def test_the_cold_start_is_measured_in_a_separate_process(tmp_path: Path) -> None:
    """The memory of this process does not count."""
    ballast = np.ones(200 * MEGABYTE, dtype=np.uint8)
    (tmp_path / "model").write_text(f"0.05 {50 * MEGABYTE}")
    measurement = measure_cold_start(tmp_path / "model", (2, 3, 4, 5), open_text)
    assert ballast.nbytes > measurement["peak_memory_bytes"] > 50 * MEGABYTE
    assert 0.05 <= measurement["start_seconds"] < measurement["cold_start_seconds"] < 60


def test_a_failing_file_is_reported_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("nonsense")
    with pytest.raises(RunError, match="not enough values to unpack"):
        measure_cold_start(tmp_path / "model", (2, 3, 4, 5), open_text)
