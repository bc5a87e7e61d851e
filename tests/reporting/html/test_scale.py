"""Reports of many runs, and of many images."""

import json
import shutil
import time
from pathlib import Path

import pytest

from kd_app.reporting.html import write_report
from tests.reporting.html.folders import run_folder

LARGEST = 15_000_000
SECONDS = 60


def write_sweep(folder: Path, *, runs: int, seeds: int, images: int, classes: int) -> list[Path]:
    """Write run folders: `seeds` runs per temperature, worse with each temperature."""
    names = tuple(f"class {number}" for number in range(classes))
    for number in range(runs):
        config = {
            "seed": number % seeds,
            "loss": {"soft_target": {"temperature": 1 + number // seeds, "weight": 1.0}},
            "teacher": {"name": "a"},
        }
        if number < seeds:
            run_folder(
                folder / str(number),
                images=images,
                names=names,
                seed=number,
                config=config,
                examples=True,
            )
        else:
            shutil.copytree(folder / str(number % seeds), folder / str(number))
            path = folder / str(number) / "results.json"
            results = json.loads(path.read_text(encoding="utf-8"))
            for split in ("validation", "test"):
                results[split]["student"]["top1"] -= 0.001 * (number // seeds)
            path.write_text(json.dumps({**results, "config": config}), encoding="utf-8")
    return sorted(folder.iterdir())


def check_report(runs: list[Path], out: Path) -> None:
    """Check that the report of these runs is fast, small and complete."""
    start = time.monotonic()
    page = write_report(runs, out)
    assert time.monotonic() - start < SECONDS
    assert sum(path.stat().st_size for path in out.glob("report.*")) < LARGEST
    assert len(json.loads((out / "report.json").read_text(encoding="utf-8"))["rows"]) == len(runs)
    assert page.read_text(encoding="utf-8").count("<h2") >= 8


def test_forty_runs_make_one_small_page(tmp_path: Path) -> None:
    check_report(
        write_sweep(tmp_path / "runs", runs=40, seeds=2, images=200, classes=5), tmp_path / "out"
    )


@pytest.mark.slow
def test_two_hundred_runs_make_a_page_in_a_minute(tmp_path: Path) -> None:
    check_report(
        write_sweep(tmp_path / "runs", runs=200, seeds=10, images=10_000, classes=100),
        tmp_path / "out",
    )


@pytest.mark.slow
def test_fifty_thousand_images_of_a_thousand_classes_make_a_page_in_a_minute(
    tmp_path: Path,
) -> None:
    run_folder(
        tmp_path / "run",
        images=50_000,
        names=tuple(f"class {number}" for number in range(1000)),
        examples=True,
    )
    check_report([tmp_path / "run"], tmp_path / "out")
