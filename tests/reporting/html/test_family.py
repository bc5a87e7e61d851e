"""Exported files of several runs: tiers, cost, and the best file for each goal."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kd_app.reporting.html import write_report
from tests.reporting.html.folders import run_folder
from tests.reporting.html.test_write import Page
from tests.reporting.manifests import DEVICE, build_entry, write_manifest


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without exports."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_folder(folder)
    return folder


def read_report(out: Path) -> Any:
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def family(plain_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Report of two sizes of a student, one of them in several formats."""
    folder = tmp_path_factory.mktemp("family")
    for name in ("large", "small"):
        shutil.copytree(plain_run, folder / name)
    large = {
        "model.onnx": build_entry(0.95, 0.04, 4.0, test=0.90),
        "model_int8.onnx": build_entry(0.94, 0.02, 2.0, format="onnx_int8", outcome="not shown"),
        "model.pte": build_entry(0.94, 0.03, 9.0, format="executorch"),
    }
    torch = {
        "student": build_entry(0.95, 0.4, 20.0),
        "teacher": build_entry(0.97, 0.8, 40.0, outcome=None),
    }
    write_manifest(folder / "large", large, ship="model_int8.onnx", **torch)
    write_manifest(
        folder / "small",
        {
            "model.onnx": build_entry(
                0.85, 0.01, 1.0, outcome="lost", test=0.99, license="cc-by-nc-4.0"
            )
        },
    )
    write_report([folder / "large", folder / "small"], folder / "out", [3, 0.5])
    return folder / "out"


def test_a_tier_is_a_file_that_no_other_beats_in_validation_accuracy_and_cost(family: Path) -> None:
    """The small file is best on test and in cost, but tiers are set on validation."""
    (family_part,) = read_report(family)["families"]
    assert [(part["run"], part["file"], part["tier"]) for part in family_part["files"]] == [
        ("small", "model.onnx", 1),
        ("large", "model_int8.onnx", 2),
        ("large", "model.pte", None),
        ("large", "model.onnx", 3),
        ("large", "", None),
        ("large", "", None),
    ]
    assert [part["role"] for part in family_part["files"]] == ["student"] * 5 + ["teacher"]
    assert [part["ship"] for part in family_part["files"]] == [
        False,
        True,
        False,
        False,
        False,
        False,
    ]
    assert family_part["device"] == DEVICE


def test_the_cheapest_file_within_the_margin_is_selected_on_validation_and_described_by_test(
    family: Path,
) -> None:
    within, *_ = read_report(family)["families"][0]["choices"]
    assert (within["run"], within["file"]) == ("large", "model.pte")
    assert (
        within["says"]
        == "Cheapest file within the margin of 1 point: large/model.pte, 93.00 % on test, verdict"
        " on test: kept, 9 ms (p95), 0.03 USD per million images; license: apache-2.0."
    )


def test_the_best_file_within_a_latency_budget_is_named_or_else_the_fastest(
    family: Path,
) -> None:
    _, within, none = read_report(family)["families"][0]["choices"]
    assert (within["asked"], within["run"], within["file"]) == (
        "Best file under 3 ms",
        "large",
        "model_int8.onnx",
    )
    assert (none["run"], none["file"]) == (None, None)
    assert "The fastest is small/model.onnx with 1 ms (p95)" in none["says"]


def test_page_markdown_and_csv_show_every_file_with_its_metrics(family: Path) -> None:
    page, markdown = (
        Page(family / "report.html").text,
        (family / "report.md").read_text(encoding="utf-8"),
    )
    for text in (
        "Exported files",
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
        assert text in page
        assert text.replace("_", "\\_") in markdown
    with (family / "report.csv").open(encoding="utf-8", newline="") as file:
        rows = {
            (row["run"], row["split"], row["about"], row["figure"]): row
            for row in csv.DictReader(file)
        }
    assert rows["large", "validation", "model.onnx", "top1"]["value"] == "0.95"
    assert rows["large", "test", "model.onnx", "top1"]["low"] == str(0.90 - 0.02)
    assert rows["large", "test", "model.pte", "cost_per_million"]["value"] == "0.03"
    assert rows["large", "test", "teacher in torch (a net)", "latency_p95"]["value"] == "40.0"


def test_the_relative_cost_of_the_teacher_is_shown_for_files_but_not_for_the_teacher(
    family: Path,
) -> None:
    tiers = (
        (family / "report.md")
        .read_text(encoding="utf-8")
        .partition("Tiers on")[2]
        .partition("All files of")[0]
    )
    assert [
        line.split(" | ")[4].strip()
        for line in tiers.splitlines()
        if line.startswith("| tier") or "in torch (" in line
    ] == [
        "",  # the teacher of the run 'small' was not measured
        "40 x",
        "20 x",
        "",
    ]


def test_files_measured_on_different_devices_are_not_compared(
    plain_run: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        shutil.copytree(plain_run, tmp_path / name)
        write_manifest(
            tmp_path / name, {"model.onnx": build_entry(0.9, 0.1, 1.0, device=f"device {name}")}
        )
    write_report([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    assert [
        [part["tier"] for part in family_part["files"]]
        for family_part in read_report(tmp_path / "out")["families"]
    ] == [[1], [1]]
    assert (
        "Exported files: the same data, device two" in Page(tmp_path / "out" / "report.html").text
    )


def test_a_file_with_few_metrics_is_a_row_without_a_tier(plain_run: Path, tmp_path: Path) -> None:
    shutil.copytree(plain_run, tmp_path / "run")
    write_manifest(
        tmp_path / "run",
        {"model.pt2": {"format": "program", "size_bytes": 5, "cost_per_million": float("nan")}},
    )
    write_report([tmp_path / "run"], tmp_path / "out", [5])
    (family_part,) = read_report(tmp_path / "out")["families"]
    assert [(part["file"], part["tier"], part["license"]) for part in family_part["files"]] == [
        ("model.pt2", None, "unknown")
    ]
    assert [choice["says"] for choice in family_part["choices"]] == [
        "Cheapest file within the margin: no file has a verdict on validation.",
        "Best file under 5 ms: no latency was measured.",
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "can't be read"),
        ('{"schema_version": 2, "files": {}}', "schema_version"),
        ("[]", "can't be read: Input should be"),
    ],
)
def test_an_invalid_manifest_is_left_out_with_a_reason(
    content: str, reason: str, plain_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(plain_run, tmp_path / "run")
    write_manifest(tmp_path / "run", {})
    (tmp_path / "run" / "export" / "manifest.json").write_text(content, encoding="utf-8")
    write_report([tmp_path / "run"], tmp_path / "out")
    report = read_report(tmp_path / "out")
    assert report["families"] == []
    assert [
        message
        for message in report["runs"][0]["missing"]
        if "Exported files are left out" in message and reason in message
    ]
