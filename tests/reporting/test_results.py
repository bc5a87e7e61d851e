import json
from pathlib import Path

import pytest

from kd_app.config import RequestError
from kd_app.metrics.report_metrics import measure_split
from kd_app.reporting.metrics import ModelMetrics
from kd_app.reporting.results import Results, build_json_schema, read, write
from tests.metrics.records import to_records
from tests.reporting.run_folders import THREE, build_results, draw_logits


def test_written_results_are_read_back_equal(tmp_path: Path) -> None:
    results = build_results()
    write(tmp_path / "results.json", results)
    assert read(tmp_path / "results.json") == results


def test_a_place_that_is_no_folder_of_a_run_is_explained(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "results.json", build_results())
    with pytest.raises(RequestError, match=r"is a file\. Expected the folder of a run: '.*/run'\."):
        read(tmp_path / "run" / "results.json" / "results.json")
    with pytest.raises(RequestError, match=r"There is no folder '.*/rum'\. Did you mean 'run'\?"):
        read(tmp_path / "rum" / "results.json")


def test_secrets_of_the_configuration_are_not_written(tmp_path: Path) -> None:
    results = build_results(config={"callbacks": {"mine": {"token": "s3cr3t", "every": 2}}})
    write(tmp_path / "results.json", results)
    mine = read(tmp_path / "results.json").config["callbacks"]["mine"]
    assert mine == {"token": "***", "every": 2}


def test_metrics_are_stored_unchanged_under_their_split(tmp_path: Path) -> None:
    write(tmp_path / "results.json", build_results())
    content = json.loads((tmp_path / "results.json").read_text())
    records = to_records(*draw_logits(THREE))
    metrics = measure_split(records, seed=0, confidence=0.95)
    assert content["test"] == {**metrics, "split": None, "robustness": []}
    assert content["schema_version"] == 1
    assert content["verdict"]["outcome"] == "lost"


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    results = build_results()
    assert results.test is not None
    content = results.model_dump()
    content["test"]["student"]["nll"] = float("nan")
    content["speed"]["training_images_per_second"] = float("inf")
    content["config"]["loss"]["soft_target"]["temperature"] = float("nan")
    content["environment"]["share"] = float("-inf")
    write(tmp_path / "results.json", Results.model_validate(content))

    def reject(constant: str) -> None:
        raise AssertionError(constant)

    stored = json.loads((tmp_path / "results.json").read_text(), parse_constant=reject)
    assert stored["test"]["student"]["nll"] is None
    assert stored["speed"]["training_images_per_second"] is None
    assert stored["config"]["loss"]["soft_target"]["temperature"] is None
    assert read(tmp_path / "results.json").environment["share"] is None


def test_a_run_without_metrics_can_be_written(tmp_path: Path) -> None:
    write(tmp_path / "results.json", Results(status="running", seed=0, config={}, environment={}))
    assert read(tmp_path / "results.json").test is None


def test_an_undeclared_metric_is_rejected() -> None:
    content = build_results().model_dump()
    content["test"]["student"]["top_1"] = 0.5
    with pytest.raises(ValueError, match="top_1"):
        Results.model_validate(content)


def test_a_further_control_has_the_metrics_of_a_model_and_no_other_value(
    tmp_path: Path,
) -> None:
    content = build_results().model_dump()
    content["test"]["smoothed"] = content["test"]["labels_only"]
    content["test"]["gains"] = {"smoothed": {"value": 0.01, "low": -0.01, "high": 0.03}}
    write(tmp_path / "results.json", Results.model_validate(content))
    test = read(tmp_path / "results.json").test
    assert test is not None
    assert list(test.by_model) == ["teacher", "labels_only", "smoothed", "student"]
    assert isinstance(test.by_model["smoothed"], ModelMetrics)
    content["test"]["smoothed"] = 0.5
    with pytest.raises(ValueError, match="smoothed"):
        Results.model_validate(content)


def test_the_json_schema_names_every_key() -> None:
    schema = build_json_schema()
    assert set(schema["properties"]) == {*build_results().model_dump(), "sha256"}
    assert schema["properties"]["schema_version"]["const"] == 1
    assert set(schema["$defs"]["ModelMetrics"]["required"]) >= {
        "top1",
        "top1_low",
        "top1_high",
        "ece",
    }
    json.dumps(schema, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 1, "stat', "truncated or not JSON"),
        ("", "truncated or not JSON"),
        ("\x00\x00", "truncated or not JSON"),
        ('{"schema_version": 7}', "schema_version 7, and this kd_app reads version 1"),
        ("[]", "schema_version None"),
        (
            '{"schema_version": 1, "status": "done", "seed": 0, "config": {}, "environment": {}}',
            "status: Input should be 'running'",
        ),
    ],
)
def test_a_corrupt_file_or_another_version_is_rejected_in_one_paragraph(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(RequestError, match=message) as raised:
        read(tmp_path / "results.json")
    assert "results.json" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_was_changed_by_hand_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write(path, build_results())
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content, indent=4, sort_keys=True), encoding="utf-8")
    assert read(path) == build_results()  # the same content
    content["test"]["student"]["top1"] = 0.99
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RequestError, match="has changed since kd_app wrote it, by hand"):
        read(path)
    del content["sha256"]  # as an earlier version wrote it
    path.write_text(json.dumps(content), encoding="utf-8")
    assert read(path).status == "finished"


def test_a_missing_file_and_binary_content_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="There is no"):
        read(tmp_path / "results.json")
    (tmp_path / "results.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(RequestError, match="can't be read"):
        read(tmp_path / "results.json")
