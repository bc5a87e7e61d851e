"""A cascade is compared with its last stage, as candidate and reference."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_app.metrics.model_pair import CASCADE
from kd_app.metrics.report_metrics import measure_split
from kd_app.metrics.verdict import VerdictRule
from kd_app.reporting.cascade import format_times, write_details
from kd_app.reporting.html.collect import build_report
from kd_app.reporting.html.run_section import build_run_part, select_split
from kd_app.reporting.html.sections import build_sections
from kd_app.reporting.results import Results, write
from kd_app.reporting.runs import load_run, write_predictions
from tests.metrics.records import to_records
from tests.reporting.run_folders import build_results, draw_logits

LATENCY = {"mean": 2.0, "p50": 2.0, "p95": 3.0, "p99": 3.0, "num_images": 8}


def stage(file: str, top1: float, cost_ms: float) -> dict[str, Any]:
    accuracy = {"value": top1}
    return {
        "file": file,
        "sha256": "ab",
        "temperature": 1.0,
        "validation": accuracy,
        "test": accuracy,
        "cost_ms": cost_ms,
        "latency": LATENCY,
    }


def rung(threshold: float, share: float, cost_ms: float) -> dict[str, Any]:
    return {
        "thresholds": [threshold],
        "shares": [1.0, share],
        "accuracy": 0.9,
        "better": 1,
        "worse": 2,
        "cost_ms": cost_ms,
        "proven": True,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The results of a cascade of two files."""
    logits, target = draw_logits({"candidate": 2.0, "reference": 3.0})
    records = to_records(logits, target)
    split = measure_split(records, seed=0, confidence=0.95, pair=CASCADE)
    judgment = VerdictRule(metric="top1", margin=0.01, confidence=0.95).judge(**records)
    cascade = {
        "answer": "cascade",
        "margin": 0.01,
        "confidence": 0.95,
        "num_images": 300,
        "measure": "margin",
        "thresholds": [0.5],
        "stages": [stage("small.onnx", 0.8, 1.0), stage("large.onnx", 0.9, 9.0)],
        "curves": [
            {"measure": "margin", "rungs": [rung(1.0, 1.0, 10.0), rung(0.5, 0.2, 3.0)], "chosen": 1}
        ],
        "test": rung(0.5, 0.2, 3.0),
        "latency": LATENCY,
        "splits": {"validation": split, "test": split},
    }
    results = Results.model_validate(
        {
            **build_results().model_dump(),
            "models": {},
            "validation": None,
            "test": None,
            "verdict": {**vars(judgment), "split": "test"},
            "cascade": cascade,
        }
    )
    write(tmp_path / "results.json", results)
    index = np.arange(len(target))
    write_predictions(
        tmp_path / "predictions.parquet",
        index=index,
        file=[f"{number}.png" for number in index],
        target=target,
        logits=logits,
    )
    return tmp_path


def test_the_verdict_names_the_cascade_and_its_last_stage(folder: Path) -> None:
    results = load_run(folder).results
    assert results.cascade is not None
    text = " ".join(write_details(results, results.cascade))
    assert "The cascade's top-1 accuracy is" in text
    assert "below large.onnx's" in text
    assert "student" not in text
    assert "teacher" not in text


def test_a_page_shows_the_metrics_of_the_test_split(folder: Path) -> None:
    results = load_run(folder).results
    assert results.cascade is not None
    assert select_split(results) is results.cascade.splits["test"]
    row = build_report([folder]).rows[0]
    test = results.cascade.splits["test"]
    assert row.test is not None
    assert row.teacher is not None
    assert (row.test.value, row.teacher.value) == (test.candidate.top1, test.reference.top1)


def test_tables_of_classes_and_flips_name_candidate_and_reference(folder: Path) -> None:
    part = build_run_part(load_run(folder), "a cascade")
    heads = [
        head
        for section in build_sections(build_report([folder]), part)
        for table in (*section.tables, *section.folded)
        for head in (table.title, *table.columns)
    ]
    columns = {"candidate", "reference", "candidate - reference", "candidate's prediction"}
    assert columns <= set(heads)
    assert "The reference is right, the candidate wrong, the most confident first" in heads
    assert part.classes[0].change == min(row.change or 0 for row in part.classes)
    assert not [head for head in heads if "student" in head or "teacher" in head]


def test_costs_are_compared_as_a_ratio() -> None:
    assert format_times(6.8, 2.0) == "3.4 times"
    assert format_times(1.0, 0.0) == "many times"
