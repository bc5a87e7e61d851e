from dataclasses import replace
from pathlib import Path

from kd_app.tracking.outcome import build_outcome
from kd_app.tracking.tables import build_confusion_tables, build_tables
from tests.tracking.runs import RESULTS, files


def test_an_outcome_without_files_and_test_has_no_artifacts_and_tables() -> None:
    results = {
        "test": None,
        "validation": {"student": {"top1": 0.5}},
        "models": {"student": {"name": "resnet8"}},
    }
    outcome = build_outcome("fm", results, [], Path("/out"), [])
    assert (
        outcome.artifacts,
        outcome.test,
        build_tables(outcome),
        build_confusion_tables(outcome),
    ) == (
        (),
        {},
        {},
        {},
    )
    assert outcome.metrics == {"validation.student.top1": 0.5, "models.student.name": "resnet8"}


def test_metrics_have_dotted_names_and_other_values_are_skipped() -> None:
    outcome = build_outcome("fm", RESULTS, [], Path("/out"), [])
    assert outcome.metrics["test.labels_only.top1_low"] == 0.77
    assert outcome.metrics["test.num_images"] == 360
    assert not any(
        name.startswith(("test.pair.g", "stages", "test.teacher.classes"))
        for name in outcome.metrics
    )
    assert list(outcome.test) == ["teacher", "labels_only", "student"]


def test_files_are_named_by_their_path_in_the_runs_folder(
    tmp_path: Path,
) -> None:
    elsewhere = tmp_path / "elsewhere.txt"
    elsewhere.write_text("x")
    outcome = build_outcome(
        "fm", RESULTS, [*files(tmp_path / "fm"), elsewhere], tmp_path / "fm", []
    )
    assert set(outcome.files) >= {
        "config.yaml",
        "results.json",
        "student/model.safetensors",
        "elsewhere.txt",
    }
    assert {each.kind: list(each.files) for each in outcome.artifacts}["student"] == [
        "student/model.safetensors"
    ]


def test_more_than_a_hundred_classes_have_no_confusion_matrix(tmp_path: Path) -> None:
    outcome = build_outcome("fm", RESULTS, files(tmp_path / "fm"), tmp_path / "fm", [])
    assert len(build_confusion_tables(outcome)["student"].rows) == 9
    assert (
        build_confusion_tables(replace(outcome, classes=[str(number) for number in range(101)]))
        == {}
    )
