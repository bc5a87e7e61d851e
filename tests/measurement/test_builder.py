"""The builder of results, without a run."""

from pathlib import Path
from typing import Any

import pytest

from kd_app.measurement.builder import ResultsBuilder
from kd_app.metrics.record import Predictions
from kd_app.metrics.verdict import VerdictRule
from kd_app.reporting.results import Data, ModelRecord, read
from kd_app.stages import Stage
from tests.metrics.records import to_records
from tests.reporting.run_folders import build_model, draw_logits
from tests.training.test_trainer import settings

RULE = VerdictRule(metric="top1", margin=0.01, confidence=0.95)
DATA = Data(classes=list("abcdefghij"), sizes={"test": 300}, fingerprint="f00d")


def builder(out: Path, *stages: Stage) -> ResultsBuilder:
    return ResultsBuilder(
        out, RULE, config={"seed": 3}, trainer=settings(), license=None, stages=stages
    )


def predictions(**skill: float) -> dict[str, Predictions]:
    return to_records(*draw_logits(skill))


def test_results_that_nothing_was_added_to_name_the_run_alone(tmp_path: Path) -> None:
    results = builder(tmp_path).build("running")
    assert (results.status, results.seed, results.models, results.test) == ("running", 3, {}, None)


def test_each_part_stands_in_the_results_as_it_was_set(tmp_path: Path) -> None:
    run = builder(tmp_path)
    run.models["student"] = ModelRecord(**build_model("a net", 10, 20))
    run.notes.append("a note of the run")
    run.add_data(DATA, ["a note of the data"])
    results = run.write("failed", "no memory")
    assert read(tmp_path / "results.json") == results
    assert results.data == DATA
    assert results.models["student"].name == "a net"
    assert results.notes == ["a note of the data", "a note of the run"]
    assert results.reason == "no memory"


def test_the_student_is_judged_against_the_teacher_on_the_split_that_was_added_last(
    tmp_path: Path,
) -> None:
    run, models = builder(tmp_path), predictions(teacher=3.0, labels_only=1.0, student=2.0)
    run.add_split_metrics("validation", models)
    run.add_split_metrics("test", models)
    verdict = run.build("running").verdict
    assert verdict is not None
    assert verdict.split == "test"
    right = {name: each.hits.mean() for name, each in models.items()}
    assert verdict.difference == pytest.approx(right["student"] - right["teacher"])
    assert run.splits["test"].student.top1 == pytest.approx(right["student"])


def test_without_a_teacher_there_is_no_verdict(tmp_path: Path) -> None:
    run = builder(tmp_path)
    run.add_split_metrics("test", predictions(labels_only=1.0, student=2.0))
    assert run.verdict is None
    assert run.splits["test"].teacher is None


@pytest.mark.parametrize(("computed", "status"), [(True, "computed"), (False, "reused")])
def test_a_stage_counts_as_computed_where_an_earlier_attempt_computed_it(
    tmp_path: Path, computed: bool, status: str
) -> None:
    stage: dict[str, Any] = {"name": "student", "path": tmp_path / "stage", "seconds": 1.0}
    builder(tmp_path, Stage(**stage, is_new=computed)).write("failed")
    results = builder(tmp_path, Stage(**stage, is_new=False)).build("running")
    assert [each.status for each in results.stages] == [status]


def test_the_files_of_a_finished_run_are_listed_with_their_hashes(tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text("index,split\n")
    run = builder(tmp_path)
    assert run.write("running").files == []
    assert [file.name for file in run.write("finished").files] == ["split.csv"]
