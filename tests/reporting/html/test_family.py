"""The files that runs were exported to: tiers, their price, and which file answers what
is asked.
"""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kd_app.reporting.html import write_report
from tests.reporting.html.folders import run_folder
from tests.reporting.html.test_write import Page
from tests.reporting.manifests import DEVICE, entry, exported


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without exports."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_folder(folder)
    return folder


def told(out: Path) -> Any:
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def family(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two sizes of a student, one in two formats."""
    folder = tmp_path_factory.mktemp("family")
    for name in ("large", "small"):
        shutil.copytree(finished, folder / name)
    large = {
        "model.onnx": entry(0.95, 0.04, 4.0, test=0.90),
        "model_int8.onnx": entry(0.94, 0.02, 2.0, format="onnx_int8", outcome="not shown"),
        "model.pte": entry(0.94, 0.03, 9.0, format="executorch"),
    }
    torch = {"student": entry(0.95, 0.4, 20.0), "teacher": entry(0.97, 0.8, 40.0, outcome=None)}
    exported(folder / "large", large, ship="model_int8.onnx", **torch)
    exported(
        folder / "small",
        {"model.onnx": entry(0.85, 0.01, 1.0, outcome="lost", test=0.99, license="cc-by-nc-4.0")},
    )
    write_report([folder / "large", folder / "small"], folder / "out", [3, 0.5])
    return folder / "out"


def test_a_tier_is_a_file_that_no_other_beats_in_validation_accuracy_and_cost(family: Path) -> None:
    """Test accuracy, by which the small one would be best in both, chooses nothing."""
    (found,) = told(family)["families"]
    assert [(part["run"], part["file"], part["tier"]) for part in found["files"]] == [
        ("small", "model.onnx", 1),
        ("large", "model_int8.onnx", 2),
        ("large", "model.pte", None),
        ("large", "model.onnx", 3),
        ("large", "", None),
        ("large", "", None),
    ]
    assert [part["role"] for part in found["files"]] == ["student"] * 5 + ["teacher"]
    assert [part["ship"] for part in found["files"]] == [False, True, False, False, False, False]
    assert found["device"] == DEVICE


def test_the_cheapest_that_keeps_the_margin_is_chosen_on_validation_and_told_by_test(
    family: Path,
) -> None:
    keeps, *_ = told(family)["families"][0]["choices"]
    assert (keeps["run"], keeps["file"]) == ("large", "model.pte")
    assert (
        keeps["says"]
        == "Cheapest that keeps the margin of 1 point: large/model.pte, 93.00 % on test, verdict"
        " there: kept, 9 ms (p95), 0.03 USD per million images; license: apache-2.0."
    )


def test_the_best_within_a_budget_of_latency_is_named_and_where_there_is_none_the_quickest(
    family: Path,
) -> None:
    _, within, none = told(family)["families"][0]["choices"]
    assert (within["asked"], within["run"], within["file"]) == (
        "Best under 3 ms",
        "large",
        "model_int8.onnx",
    )
    assert (none["run"], none["file"]) == (None, None)
    assert "the quickest is small/model.onnx with 1 ms (p95)" in none["says"]


def test_page_text_and_table_show_every_file_with_its_figures(family: Path) -> None:
    page, text = (
        Page(family / "report.html").text,
        (family / "report.md").read_text(encoding="utf-8"),
    )
    for shown in (
        "What ships",
        "tier 3",
        "large/model.pte",
        "93.00 %",
        "0.03 USD",
        "40 x",
        "p95 9 ms, p99 13.5 ms",
        "cc-by-nc-4.0",
        "batch 32",
        DEVICE,
    ):
        assert shown in page
        assert shown.replace("_", "\\_") in text
    with (family / "report.csv").open(encoding="utf-8", newline="") as file:
        rows = {
            (row["run"], row["split"], row["about"], row["figure"]): row
            for row in csv.DictReader(file)
        }
    assert rows["large", "validation", "model.onnx", "top1"]["value"] == "0.95"
    assert rows["large", "test", "model.onnx", "top1"]["low"] == str(0.90 - 0.02)
    assert rows["large", "test", "model.pte", "cost_per_million"]["value"] == "0.03"
    assert rows["large", "test", "teacher in torch (a net)", "latency_p95"]["value"] == "40.0"


def test_the_price_of_a_teacher_is_told_beside_files_and_not_beside_other_models_in_torch(
    family: Path,
) -> None:
    shown = (
        (family / "report.md")
        .read_text(encoding="utf-8")
        .partition("Tiers on")[2]
        .partition("Every file of")[0]
    )
    assert [
        line.split(" | ")[4].strip()
        for line in shown.splitlines()
        if line.startswith("| tier") or "in torch (" in line
    ] == [
        "",  # the run 'small' has no teacher that was measured
        "40 x",
        "20 x",
        "",
    ]


def test_files_measured_on_different_devices_are_not_compared(
    finished: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        shutil.copytree(finished, tmp_path / name)
        exported(tmp_path / name, {"model.onnx": entry(0.9, 0.1, 1.0, device=f"device {name}")})
    write_report([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    assert [
        [part["tier"] for part in found["files"]] for found in told(tmp_path / "out")["families"]
    ] == [[1], [1]]
    assert "What ships: the same data, device two" in Page(tmp_path / "out" / "report.html").text


def test_a_file_of_which_little_is_known_is_a_row_without_a_tier(
    finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    exported(
        tmp_path / "run",
        {"model.pt2": {"format": "program", "size_bytes": 5, "cost_per_million": float("nan")}},
    )
    write_report([tmp_path / "run"], tmp_path / "out", [5])
    (found,) = told(tmp_path / "out")["families"]
    assert [(part["file"], part["tier"], part["license"]) for part in found["files"]] == [
        ("model.pt2", None, "unknown")
    ]
    assert [choice["says"] for choice in found["choices"]] == [
        "Cheapest that keeps the margin: no file has a verdict on validation.",
        "Best under 5 ms: no latency was measured.",
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "can't be read"),
        ('{"schema_version": 2, "files": {}}', "schema_version"),
        ("[]", "is no manifest"),
    ],
)
def test_a_manifest_that_is_none_is_left_out_and_said(
    content: str, reason: str, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    exported(tmp_path / "run", {})
    (tmp_path / "run" / "export" / "manifest.json").write_text(content, encoding="utf-8")
    write_report([tmp_path / "run"], tmp_path / "out")
    found = told(tmp_path / "out")
    assert found["families"] == []
    assert [
        said
        for said in found["runs"][0]["missing"]
        if "Exported files are left out" in said and reason in said
    ]
