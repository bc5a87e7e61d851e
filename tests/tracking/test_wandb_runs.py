"""Runs of Weights & Biases: which one a training is, without a login, and online."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from kd_app.tracking import Tracker
from tests.tracking.runs import (
    RESULTS,
    SECRET,
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
