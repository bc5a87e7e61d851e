import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from kd_app.tracking import Tracker
from tests.tracking.runs import (
    RESULTS,
    SECRET,
    SHA,
    TEACHER,
    build_tracker,
    files,
    points,
    train,
    wandb,
    whole_run,
    with_home,
)
from tests.tracking.wandb_files import OfflineRun, offline_runs
from tests.tracking.wandb_server import Server, log_in, serving, surroundings


@pytest.fixture(scope="module")
def tracked_runs(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[str], dict[str, OfflineRun]]:
    out = tmp_path_factory.mktemp("home") / "fm"
    messages = whole_run(out, {"wandb": wandb()})
    return out, messages, {stage: runs[0] for stage, runs in offline_runs(out).items()}


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


def test_wandb_leaves_no_changes_in_the_process(tmp_path: Path) -> None:
    before = dict(os.environ), sys.exit, sys.excepthook
    whole_run(tmp_path / "fm", {"wandb": wandb()})
    assert (dict(os.environ), sys.exit, sys.excepthook) == before


def test_two_open_runs_do_not_mix(tmp_path: Path) -> None:
    first, second = (
        build_tracker(tmp_path / name, {"wandb": wandb()}, [], name=name) for name in ("a", "b")
    )
    listeners = [first.start("student"), second.start("student")]
    for step in (1, 2, 3):
        for number, listen in enumerate(listeners):
            listen({"train/loss": float(number)}, step)
    second.close(exit_code=1)
    first.close(exit_code=0)
    for name, losses, code in (("a", [0, 0, 0], 0), ("b", [1, 1, 1], 1)):
        (read,) = offline_runs(tmp_path / name)["student"]
        assert [row["train/loss"] for row in read.history] == losses
        assert (read.run.run_group, read.exit_code) == (name, code)


def test_a_reused_stage_has_a_run_with_the_curves_of_its_training(tmp_path: Path) -> None:
    tracker = build_tracker(tmp_path / "fm", {"wandb": wandb()}, [])
    for stage in ("teacher", "labels_only", "student"):
        tracker.finish(stage, TEACHER, None, points)
    tracker.log_results(with_home(RESULTS, tmp_path), files(tmp_path / "fm"))
    tracker.close(exit_code=0)
    runs = offline_runs(tmp_path / "fm")
    assert {
        stage: len([row for row in read.history if "train/loss" in row])
        for stage, (read,) in runs.items()
    } == dict.fromkeys(runs, 3)
    assert set(runs) == {"teacher", "labels_only", "student"}
    assert runs["student"][0].summary["test.student.top1"] == 0.85


def test_trials_of_a_sweep_skip_reused_stages(tmp_path: Path) -> None:
    tracker = build_tracker(tmp_path / "fm", {"wandb": wandb()}, [], skip_reused=True)
    for stage in ("teacher", "labels_only", "student"):
        tracker.finish(stage, TEACHER, None, points)
    tracker.close(exit_code=0)
    assert set(offline_runs(tmp_path / "fm")) == {"student"}


def test_a_resumed_training_is_the_same_run_and_has_each_point_once(
    tmp_path: Path,
) -> None:
    for code, before, epochs in (
        (130, 0, 2),
        (0, 3, 3),
    ):
        # The first attempt stopped after 4 points and saved 3.
        tracker = build_tracker(tmp_path / "fm", {"wandb": wandb()}, [])
        train(tracker, "student", epochs=epochs, before=before)
        tracker.close(exit_code=code)
        tracker.close(exit_code=1)  # a second time changes nothing
    stopped, finished = offline_runs(tmp_path / "fm")["student"]
    assert stopped.run.run_id == finished.run.run_id
    assert (stopped.exit_code, finished.exit_code) == (130, 0)
    assert [row["step"] for row in stopped.history] == [5, 10, 15, 20]
    assert [row["step"] for row in finished.history] == [5, 10, 15, 20, 25, 30]
    assert finished.summary["validation/best_top1"] == 1.0


def test_a_new_training_after_a_finished_one_is_another_run(tmp_path: Path) -> None:
    for _ in range(2):
        tracker = build_tracker(tmp_path / "fm", {"wandb": wandb()}, [])
        train(tracker, "student")
        tracker.close(exit_code=0)
    first, second = offline_runs(tmp_path / "fm")["student"]
    assert first.run.run_id != second.run.run_id


def test_a_damaged_state_file_starts_another_run(tmp_path: Path) -> None:
    (tmp_path / "fm" / "wandb").mkdir(parents=True)
    (tmp_path / "fm" / "wandb" / "student.json").write_text('{"id": "a')
    messages: list[str] = []
    tracker = build_tracker(tmp_path / "fm", {"wandb": wandb()}, messages)
    train(tracker, "student", before=3)
    tracker.close(exit_code=0)
    assert len(messages) == 1
    assert len(offline_runs(tmp_path / "fm")["student"][0].history) == 6


def test_disabled_mode_writes_and_prints_nothing(tmp_path: Path) -> None:
    assert whole_run(tmp_path / "fm", {"wandb": wandb(mode="disabled")}) == []
    assert not (tmp_path / "fm" / "wandb").exists()


def test_the_environment_sets_the_mode_auto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert whole_run(tmp_path / "fm", {"wandb": wandb(mode="auto")}) == []


def in_a_process(body: str, out: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `body` with a `tracker` in mode 'auto' in a new process, without a login."""
    script = f"""
        import os, signal, subprocess, time
        from pathlib import Path
        from tests.tracking.runs import *
        messages = []
        tracker = build_tracker(Path({str(out)!r}), {{"wandb": wandb(mode="auto")}}, messages)
    """
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WANDB_", "NETRC"))
    }
    environment = {
        **clean,
        "HOME": str(out.parent),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        **variables,
    }
    text = textwrap.dedent(script) + textwrap.dedent(body) + '\nprint("\\n".join(messages))\n'
    return subprocess.run(
        [sys.executable, "-c", text],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def test_runs_are_offline_without_a_login_and_without_a_prompt(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    messages: list[str] = []
    with surroundings(tmp_path):
        tracker = build_tracker(tmp_path / "fm", {"wandb": wandb(mode="auto")}, messages)
        train(tracker, "teacher")
        tracker.close(exit_code=0)
    assert messages[0].startswith("W&B: offline (no login); upload later with: wandb sync ")
    assert capfd.readouterr() == ("", "")
    assert len(offline_runs(tmp_path / "fm")["teacher"][0].history) == 6


def test_under_an_agent_only_the_student_has_the_trials_id(tmp_path: Path) -> None:
    trial = {"WANDB_SWEEP_ID": "sweep9", "WANDB_RUN_ID": "trial7", "WANDB_PROJECT": "swept"}
    with surroundings(tmp_path, **trial, WANDB_MODE="offline"):
        tracker = build_tracker(tmp_path / "fm", {"wandb": wandb(mode="auto")}, [])
        for stage in ("teacher", "labels_only", "student"):
            train(tracker, stage)
        tracker.close(exit_code=0)
    runs = offline_runs(tmp_path / "fm")
    assert set(runs) == {"student"}
    assert (
        runs["student"][0].run.run_id,
        runs["student"][0].run.sweep_id,
        runs["student"][0].run.project,
    ) == ("trial7", "sweep9", "swept")


def test_without_an_agent_the_student_has_the_requested_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    tracker = build_tracker(tmp_path / "fm", {"wandb": wandb()}, [])
    for stage in ("teacher", "student"):
        train(tracker, stage)
    tracker.close(exit_code=0)
    runs = offline_runs(tmp_path / "fm")
    assert runs["student"][0].run.run_id == "mine"
    assert runs["teacher"][0].run.run_id != "mine"


def test_ctrl_c_closes_the_run_with_its_exit_code_and_all_points(tmp_path: Path) -> None:
    body = """
        # A shell that runs the tests in the background ignores SIGINT.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            train(tracker, "teacher")
            os.killpg(0, signal.SIGINT)
            time.sleep(30)
        finally:
            tracker.close(exit_code=130)
    """
    process = in_a_process(body, tmp_path / "fm")
    assert process.returncode == -signal.SIGINT
    (read,) = offline_runs(tmp_path / "fm")["teacher"]
    assert (read.exit_code, len(read.history)) == (130, 6)


def test_a_tracker_that_dies_is_disabled_with_one_message(tmp_path: Path) -> None:
    body = """
        train(tracker, "teacher")
        pgrep = ["pgrep", "-P", str(os.getpid())]
        pids = subprocess.run(pgrep, capture_output=True, text=True).stdout.split()
        for pid in pids:
            try: os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError: pass
        time.sleep(0.2)
        tracker.end("teacher", exit_code=0)
        train(tracker, "student")
        tracker.close(exit_code=0)
    """
    process = in_a_process(body, tmp_path / "fm", WANDB_MODE="offline")
    lines = process.stdout.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("logger wandb failed (")
    assert lines[1].endswith("is disabled; the run continues.")
    assert (process.returncode, process.stderr) == (0, "")


def test_a_rejected_key_means_offline(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    messages: list[str] = []
    with serving(refuses=True) as server, surroundings(tmp_path, **log_in(server)):
        tracker = build_tracker(tmp_path / "fm", {"wandb": wandb(mode="auto")}, messages)
        train(tracker, "teacher")
        tracker.close(exit_code=0)
    assert messages[0].startswith("W&B: offline (")
    assert "401" in messages[0]
    assert capfd.readouterr() == ("", "")
    assert len(offline_runs(tmp_path / "fm")["teacher"][0].history) == 6


def test_the_server_gets_runs_metrics_files_and_lineage_without_machine_paths(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving() as server, surroundings(tmp_path, **log_in(server)):
        (message,) = whole_run(tmp_path / "fm", {"wandb": wandb(mode="auto")})
    assert message.startswith(f"W&B: {server.url}/me/kd_app/runs/")
    assert capfd.readouterr() == ("", "")
    runs = [call for call in server.list_calls("UpsertBucket") if call["jobType"]]
    assert {(call["jobType"], call["groupName"], *call["tags"]) for call in runs} == {
        (stage, "fm", "first", "small") for stage in ("teacher", "labels_only", "student")
    }
    check_links(server)
    assert sum('"exitcode":0' in text for text in server.texts) == 3
    everything = "".join(server.texts)
    assert "test.student.top1" in everything
    for private in (SECRET, str(tmp_path), str(Path.cwd()), sys.prefix):
        assert private not in everything


def check_links(server: Server) -> None:
    """Check that the server received the artifacts that each run used and logged."""
    outputs = [
        call["input"]
        for call in server.list_calls("CreateArtifact")
        if call["input"]["artifactTypeName"] != "run_table"
    ]
    names = {call["input"]["runName"] for call in server.list_calls("UseArtifact")}
    assert len(names) == 3
    assert len(server.list_calls("UseArtifact")) == 4  # the split three times, the teacher once
    teachers = [each for each in outputs if each["artifactTypeName"] == "teacher"]
    assert len({each["digest"] for each in teachers}) == 1
    assert [each["runName"] is None for each in teachers].count(
        True
    ) == 1  # used by the student's run, made by the teacher's own
    assert {each["artifactTypeName"] for each in outputs if each["runName"]} == {
        "teacher",
        "student",
        "run",
    }


def test_offline_links_are_uploaded_later(
    tracked_runs: tuple[Path, list[str], dict[str, OfflineRun]], tmp_path: Path
) -> None:
    runs = [str(path.parent) for path in tracked_runs[0].glob("wandb/offline-run-*/*.wandb")]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    with serving() as server:
        online = {"HOME": str(tmp_path), "WANDB_ERROR_REPORTING": "false", **log_in(server)}
        subprocess.run(
            [str(Path(sys.executable).with_name("wandb")), "sync", *sorted(runs)],
            env={**clean, **online},
            cwd=tmp_path,
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
    check_links(server)
    assert sorted(len(history) for history in server.histories.values()) == [6, 6, 8]


def test_a_resumed_online_run_has_each_point_once(tmp_path: Path) -> None:
    with serving() as server, surroundings(tmp_path, **log_in(server)):
        for code, before, epochs in ((130, 0, 2), (0, 3, 3)):
            tracker = build_tracker(tmp_path / "fm", {"wandb": wandb(mode="auto")}, [])
            train(tracker, "student", epochs=epochs, before=before)
            tracker.close(exit_code=code)
    (history,) = server.histories.values()
    assert [row["step"] for row in history] == [5, 10, 15, 20, 25, 30]


def test_a_broken_output_folder_disables_the_tracker(tmp_path: Path) -> None:
    messages: list[str] = []
    broken = tmp_path / "broken"
    broken.write_text("a file where a folder should be")
    tracker = Tracker(
        {"wandb": wandb()},
        out=broken / "fm",
        name="fm",
        group="fm",
        tags=[],
        config={},
        say=messages.append,
    )
    listen: Any = tracker.start("teacher")
    listen({"train/loss": 1.0}, 1)
    tracker.close(exit_code=0)
    assert len(messages) == 1
    assert messages[0].startswith("logger wandb failed (NotADirectoryError: ")
