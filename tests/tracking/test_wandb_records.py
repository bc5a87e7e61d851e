"""What an offline run of Weights & Biases records."""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from kd_app.tracking import Tracker
from tests.tracking.runs import (
    SECRET,
    SHA,
    train,
    wandb,
)
from tests.tracking.wandb_files import OfflineRun, offline_runs


def test_a_message_explains_how_to_upload_an_offline_run(
    tracked_runs: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    out, messages, _ = tracked_runs
    assert messages == [f"W&B: offline; upload later with: wandb sync {out}/wandb/offline-run-*"]


def test_each_training_is_a_run_of_the_group_with_its_stage_as_job_type(
    tracked_runs: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    _, _, runs = tracked_runs
    assert set(runs) == {"teacher", "labels_only", "student"}
    for stage, read in runs.items():
        assert (
            read.run.project,
            read.run.run_group,
            read.run.display_name,
            list(read.run.tags),
        ) == ("kd", "fm", f"fm {stage}", ["first", "small"])
        assert read.config["loss"] == {"soft_target": {"temperature": 4.0, "weight": 1.0}}
        assert read.config["seed"] == 3
        assert read.exit_code == 0
    assert len({read.run.run_id for read in runs.values()}) == 3


def test_curves_have_their_steps_and_epochs_as_axes(
    tracked_runs: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    for read in tracked_runs[2].values():
        assert [
            (row["step"], row["train/loss"]) for row in read.history if "train/loss" in row
        ] == [(5, 1.0), (15, 0.5), (25, pytest.approx(1 / 3))]
        assert [row["train/soft_target"] for row in read.history if "train/loss" in row][:2] == [
            0.5,
            0.25,
        ]
        assert [
            (row["epoch"], row["validation/top1"]) for row in read.history if "epoch" in row
        ] == [(0, 0.75), (1, 1.0), (2, 0.75)]
        assert read.metrics["*"].step_metric == "step"
        assert read.metrics["validation/top1"].step_metric == "epoch"


def test_the_summary_keeps_the_best_epoch(
    tracked_runs: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    for read in tracked_runs[2].values():
        assert read.summary["validation/top1"] == {"max": 1.0}
        assert read.summary["validation/nll"] == {"min": 0.5}
        assert read.summary["validation/best_top1"] == 1.0  # a plain number, as W&B's sweeps need


def test_only_the_students_run_has_the_metrics_by_their_names_in_the_results(
    tracked_runs: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    _, _, runs = tracked_runs
    summary = runs["student"].summary
    assert (
        summary["test.student.top1"],
        summary["test.pair.retention"],
        summary["verdict.decision"],
    ) == (0.85, 0.944, "not shown")
    assert (summary["speed.student.images_per_second"], summary["models.teacher.params"]) == (
        1234.5,
        700_000,
    )
    assert not {"test.pair.gap_closed", "test.pair.gain"} & set(summary)
    assert not any(
        name.startswith("test.")
        for name in [*runs["teacher"].summary, *runs["labels_only"].summary]
    )


def read_table(out: Path, run: OfflineRun, name: str) -> dict[str, Any]:
    """Read a table that a run has logged."""
    path = run.summary[f"{name}/path"]
    table: dict[str, Any] = json.loads(next(out.glob(f"wandb/*/files/{path}")).read_text())
    return table


def test_the_test_metrics_are_a_table_with_a_row_for_each_model(
    tracked_runs: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    out, _, runs = tracked_runs
    table = read_table(out, runs["student"], "test_figures")
    assert table["columns"] == ["model", "top1", "top1_low", "nll"]
    assert table["data"] == [
        ["teacher", 0.9, 0.88, None],
        ["labels_only", 0.8, 0.77, None],
        ["student", 0.85, 0.82, 0.5],
    ]


def test_the_examples_are_a_table_of_images_with_both_predictions(
    tracked_runs: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    artifact = next(
        each for each in tracked_runs[2]["student"].artifacts if each.name.endswith("-examples")
    )
    files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    table = json.loads(files["examples.table.json"].read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["file"] for row in rows] == ["cat/1.png", "dog/1.png", "owl/2.png"]
    assert [(row["label"], row["teacher"], row["student"], row["why"]) for row in rows][1] == (
        "dog",
        "dog",
        "owl",
        "negative_flip",
    )
    assert rows[1]["student probabilities"] == "dog 0.600, owl 0.400"
    assert rows[1]["divergence"] == 1.5
    with Image.open(files[rows[0]["image"]["path"]]) as image:
        assert image.size == (8, 8)


def test_confusions_are_heat_maps_of_counts(
    tracked_runs: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    out, _, runs = tracked_runs
    for role, right in (("teacher", 3), ("labels_only", 2), ("student", 2)):
        table = read_table(out, runs["student"], f"confusion/{role}_table")
        assert table["columns"] == ["Actual", "Predicted", "nPredictions"]
        assert len(table["data"]) == 9
        assert sum(count for label, top1, count in table["data"] if label == top1) == right
    assert ["dog", "owl", 1] in table["data"]
    chart = runs["student"].config["_wandb/visualize/confusion/student"]
    assert chart["panel_config"]["panelDefId"] == "wandb/confusion_matrix/v1"


def test_soft_label_metrics_are_logged_at_the_start_of_the_students_training(
    tracked_runs: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    out, _, runs = tracked_runs
    assert read_table(out, runs["student"], "teacher_similar_classes")["data"] == [
        ["cat", "dog", 0.2]
    ]
    assert runs["student"].history[0]["teacher_entropy/nrows"] == 2
    entropy = read_table(out, runs["student"], "teacher_entropy")
    assert (entropy["columns"], entropy["data"][1]) == (
        ["temperature", "mean_nats", "of_uniform"],
        [4.0, 0.9, 0.82],
    )


def select_artifacts(run: OfflineRun, *, used: bool) -> dict[str, Any]:
    """The artifacts that a run used or logged, by kind."""
    return {
        each.type: each
        for each in run.artifacts
        if each.use_after_commit == used and each.type != "run_table"
    }


def test_artifacts_link_the_runs(
    tracked_runs: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    _, _, runs = tracked_runs
    assert {stage: set(select_artifacts(run, used=True)) for stage, run in runs.items()} == {
        "teacher": {"split"},
        "labels_only": {"split"},
        "student": {"split", "teacher"},
    }
    assert {stage: set(select_artifacts(run, used=False)) for stage, run in runs.items()} == {
        "teacher": {"teacher"},
        "labels_only": set(),
        "student": {"student", "run"},
    }
    outputs, used = (
        select_artifacts(runs["teacher"], used=False)["teacher"],
        select_artifacts(runs["student"], used=True)["teacher"],
    )
    # For W&B, this is the same version.
    assert (outputs.name, outputs.digest) == (used.name, used.digest)
    assert (outputs.name, sorted(outputs.aliases)) == ("teacher-wrn_16_2", [SHA[:12], "latest"])
    splits = {select_artifacts(run, used=True)["split"].digest for run in runs.values()}
    assert len(splits) == 1


def test_each_artifact_has_its_content_and_the_artifacts_it_uses(
    tracked_runs: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    out, _, runs = tracked_runs
    used, outputs = (
        select_artifacts(runs["student"], used=True),
        select_artifacts(runs["student"], used=False),
    )
    reference = {"name": "wrn_16_2", "sha256": SHA, "stage": "teacher-12"}
    assert runs["student"].config["lineage"]["teacher"] == {
        **reference,
        "source": "trained here in teacher-12",
    }
    for entry in used["teacher"].manifest.contents:
        assert json.loads(Path(entry.local_path).read_text()) == reference
    assert {entry.path for entry in used["split"].manifest.contents} == {"split.csv", "split.json"}
    assert (out / "wandb" / ".told" / "split.csv").read_text().splitlines()[
        1
    ] == "0,cat/0.png,cat,train,"
    assert {entry.path for entry in outputs["student"].manifest.contents} == {
        "student/model.safetensors"
    }
    assert {entry.path for entry in outputs["run"].manifest.contents} == {
        "config.yaml",
        "results.json",
        "predictions.parquet",
        "examples.parquet",
    }
    for artifact in outputs.values():
        assert json.loads(artifact.metadata)["uses"] == [
            {"kind": "split", "name": "photos-split", "identity": "fe" * 32},
            {"kind": "teacher", "name": "teacher-wrn_16_2", "identity": SHA},
        ]


def test_no_record_or_logged_file_has_secrets_or_machine_paths(
    tracked_runs: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    out, _, runs = tracked_runs
    for read in runs.values():
        for artifact in read.artifacts:
            for entry in artifact.manifest.contents:
                # `wandb sync` reads the file here; the path itself is not sent.
                file = Path(entry.local_path)
                assert file.is_relative_to(out)
                text = (
                    str(pd.read_parquet(file).to_dict())
                    if file.suffix == ".parquet"
                    else file.read_text(errors="replace")
                )
                assert str(out.parent) not in text
                entry.local_path = ""
        text = "".join(str(record) for record in read.records)
        assert SECRET not in text
        assert str(out.parent) not in text
        assert str(Path.cwd()) not in text
        assert str(Path(sys.prefix)) not in text
    for sent in out.glob("wandb/*/files/**/*.json"):
        assert str(out.parent) not in sent.read_text()


def test_names_tags_groups_and_notes_hold_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "SIGNING_KEY": "s3cr3t-key",
        "GITHUB_PAT": "s3cr3t-pat",
        "DB_PWD": "s3cr3t-pwd",
        "DATABASE_URL": "postgres://me:s3cr3t-url@db/x",
        "WANDB_NOTES": "with s3cr3t-key",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    tracker = Tracker(
        {"wandb": wandb()},
        out=tmp_path / "fm",
        name="fm-s3cr3t-key",
        group="group-s3cr3t-pat",
        tags=["s3cr3t-pwd", "postgres://me:s3cr3t-url@db/x"],
        config={"tags": ["s3cr3t-pwd"], "note": "s3cr3t-url"},
        say=lambda text: None,
    )
    train(tracker, "student", epochs=1)
    tracker.close(exit_code=0)
    (read,) = offline_runs(tmp_path / "fm")["student"]
    assert read.run.display_name == "fm-*** student"
    assert read.run.run_group == "group-***"
    assert sorted(read.run.tags) == ["***", "postgres://db/x"]
    assert read.run.notes == "with ***"
    (file,) = (tmp_path / "fm").glob("wandb/offline-run-*/*.wandb")
    assert b"s3cr3t-" not in file.read_bytes()
