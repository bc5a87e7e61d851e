"""Exit codes and logs of ranks, without training."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kd_app.callbacks.curve_log import CurveLogger
from kd_app.config import RequestError, RunError
from kd_app.training.launch import (
    FAILED,
    REFUSED,
    _list_failed,
    _pass_points,
    _raise_failure,
    _read_last_line,
    check_places,
)


def rank(code: int | None) -> Any:
    return SimpleNamespace(read_exit_code=lambda: code)


def logs(folder: Path, *texts: str) -> list[Path]:
    """One log for each rank; the last written one is the oldest."""
    paths = [folder / f"rank{number}.log" for number in range(len(texts))]
    for age, (path, text) in enumerate(zip(paths, texts, strict=True)):
        path.write_text(text, encoding="utf-8")
        os.utime(path, ns=(10**9 * (100 - age),) * 2)
    return paths


def test_a_rank_has_failed_if_its_exit_code_is_not_zero() -> None:
    assert _list_failed([rank(None), rank(0), rank(FAILED), rank(-9)]) == [2, 3]


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (REFUSED, RequestError, r"^lr is wrong$"),
        (FAILED, RunError, r"^Process 1 of 2 failed: lr is wrong Its full log is .*rank1\.log\.$"),
        (-9, RunError, r"^Process 1 of 2 was killed by signal 9: lr is wrong"),
        (143, RunError, r"^Process 1 of 2 was stopped by SIGTERM.*state is saved"),
    ],
)
def test_the_error_is_that_of_the_rank_whose_log_ends_first(
    code: int, error: type[Exception], message: str, tmp_path: Path
) -> None:
    files = logs(tmp_path, "peer lost\n", "Traceback\nlr is wrong\n\n")
    with pytest.raises(error, match=message):
        _raise_failure([0, 1], [rank(FAILED), rank(code)], files)


def test_an_empty_log_has_no_last_line(tmp_path: Path) -> None:
    assert _read_last_line(logs(tmp_path, " \n")[0]) == "the log is empty."


def test_only_new_points_of_the_curves_are_passed_on(tmp_path: Path) -> None:
    logger, points = CurveLogger(tmp_path), list[tuple[dict[str, float], int]]()
    for step in (1, 2, 3):
        logger.log_metrics({"train/loss": float(step)}, step=step)
    assert _pass_points(tmp_path, 2, lambda row, step: points.append((row, step))) == 3
    assert points == [({"train/loss": 3.0}, 3)]
    assert _pass_points(tmp_path, 5, None) == 5


def test_several_machines_need_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    settings: Any = SimpleNamespace(world_size=4, devices=2, num_nodes=2)
    with pytest.raises(RequestError, match=r"torchrun --nnodes=2 --nproc-per-node=2 -m"):
        check_places(settings)
    check_places(SimpleNamespace(world_size=2, devices=2, num_nodes=1))  # type: ignore[arg-type]
