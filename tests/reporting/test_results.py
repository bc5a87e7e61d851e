import json
from pathlib import Path

import pytest

from kd_app.config import RequestError
from kd_app.metrics.report_metrics import measure_split
from kd_app.reporting.results import ModelMetrics, Results, build_json_schema, read, write
from tests.metrics.records import to_records
from tests.reporting.run_folders import THREE, logits_and_target, made


def test_what_is_written_is_read_back_equal(tmp_path: Path) -> None:
    results = made()
    write(tmp_path / "results.json", results)
    assert read(tmp_path / "results.json") == results


def test_the_figures_of_the_metrics_room_stand_under_their_split_unchanged(tmp_path: Path) -> None:
    write(tmp_path / "results.json", made())
    content = json.loads((tmp_path / "results.json").read_text())
    records = to_records(*logits_and_target(THREE))
    assert content["test"] == {**measure_split(records, seed=0, confidence=0.95), "robustness": []}
    assert content["schema_version"] == 1
    assert content["verdict"]["outcome"] == "lost"


def test_what_is_not_finite_becomes_null_in_plain_json(tmp_path: Path) -> None:
    results = made()
    assert results.test is not None
    bad = results.model_dump()
    bad["test"]["student"]["nll"] = float("nan")
    bad["speed"]["training_images_per_second"] = float("inf")
    bad["config"]["loss"]["soft_target"]["temperature"] = float("nan")
    bad["environment"]["share"] = float("-inf")
    write(tmp_path / "results.json", Results.model_validate(bad))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    content = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert content["test"]["student"]["nll"] is None
    assert content["speed"]["training_images_per_second"] is None
    assert content["config"]["loss"]["soft_target"]["temperature"] is None
    assert read(tmp_path / "results.json").environment["share"] is None


def test_a_run_that_has_just_begun_can_be_written_down(tmp_path: Path) -> None:
    write(tmp_path / "results.json", Results(status="running", seed=0, config={}, environment={}))
    assert read(tmp_path / "results.json").test is None


def test_a_figure_that_nobody_declared_is_refused() -> None:
    content = made().model_dump()
    content["test"]["student"]["top_1"] = 0.5
    with pytest.raises(ValueError, match="top_1"):
        Results.model_validate(content)


def test_a_control_beside_labels_only_has_the_figures_of_a_model_and_nothing_else_may_stand_there(
    tmp_path: Path,
) -> None:
    content = made().model_dump()
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


def test_the_json_schema_names_every_key_and_fits_what_is_written() -> None:
    schema = build_json_schema()
    assert set(schema["properties"]) == set(made().model_dump())
    assert schema["properties"]["schema_version"]["const"] == 1
    assert set(schema["$defs"]["ModelMetrics"]["required"]) >= {
        "top1",
        "top1_low",
        "top1_high",
        "ece",
    }
    json.dumps(schema, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"schema_version": 1, "stat', "cut off or no JSON"),
        ("", "cut off or no JSON"),
        ("\x00\x00", "cut off or no JSON"),
        ('{"schema_version": 7}', "schema_version 7, and this kd_app reads version 1"),
        ("[]", "schema_version None"),
        (
            '{"schema_version": 1, "status": "done", "seed": 0, "config": {}, "environment": {}}',
            "status: Input should be 'running'",
        ),
    ],
)
def test_a_corrupt_file_or_one_of_another_version_is_refused_in_one_paragraph(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(RequestError, match=said) as raised:
        read(tmp_path / "results.json")
    assert "results.json" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_file_and_no_text_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="There is no"):
        read(tmp_path / "results.json")
    (tmp_path / "results.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(RequestError, match="can't be read"):
        read(tmp_path / "results.json")
