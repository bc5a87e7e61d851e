"""The curves of a training as JSON lines."""

from pathlib import Path

import pytest

from kd_app.callbacks.curve_log import (
    FILE,
    CurveLogger,
    Row,
    drop_points_after,
    read_curves,
    read_points,
)


def log(folder: Path, *steps: int) -> list[tuple[Row, int]]:
    points: list[tuple[Row, int]] = []
    logger = CurveLogger(folder, lambda row, step: points.append((row, step)))
    for step in steps:
        logger.log_metrics({"train/loss": step / 2}, step=step)
    return points


def test_every_point_is_written_and_passed_on(tmp_path: Path) -> None:
    points = log(tmp_path, 1, 2)
    assert points == [({"train/loss": 0.5}, 1), ({"train/loss": 1.0}, 2)]
    assert read_points(tmp_path) == points
    assert next(read_curves(tmp_path / FILE)) == {"step": 1, "train/loss": 0.5}


@pytest.mark.parametrize("step", [-1, 1, 5])
def test_points_after_a_step_are_dropped(step: int, tmp_path: Path) -> None:
    log(tmp_path, 1, 2, 3)
    drop_points_after(tmp_path / FILE, step)
    assert [number for _, number in read_points(tmp_path)] == [n for n in (1, 2, 3) if n <= step]


def test_points_after_a_truncated_line_are_ignored(tmp_path: Path) -> None:
    log(tmp_path, 1)
    with (tmp_path / FILE).open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "train/lo\n{"step": 3}\n')
    assert [number for _, number in read_points(tmp_path)] == [1]


def test_a_missing_file_has_no_points(tmp_path: Path) -> None:
    assert read_points(tmp_path) == []
