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
    files,
    points,
    tracker,
    train,
    wandb,
    whole_run,
    with_home,
)
from tests.tracking.wandb_files import OfflineRun, offline_runs
from tests.tracking.wandb_server import Server, serving


@pytest.fixture(scope="module")
def followed(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[str], dict[str, OfflineRun]]:
    out = tmp_path_factory.mktemp("home") / "fm"
    said = whole_run(out, {"wandb": wandb()})
    return out, said, {stage: runs[0] for stage, runs in offline_runs(out).items()}


def test_one_line_says_how_to_upload_what_is_offline(
    followed: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    out, said, _ = followed
    assert said == [f"W&B: offline; to upload it later: wandb sync {out}/wandb/offline-run-*"]


def test_each_training_is_a_run_of_the_group_with_its_stage_as_job_type(
    followed: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    _, _, runs = followed
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
    followed: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    for read in followed[2].values():
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
    followed: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    for read in followed[2].values():
        assert read.summary["validation/top1"] == {"max": 1.0}
        assert read.summary["validation/nll"] == {"min": 0.5}
        assert (
            read.summary["validation/best_top1"] == 1.0
        )  # a plain number, as W&B's sweeps want one


def test_only_the_students_run_gets_the_figures_by_their_names_in_the_results(
    followed: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    _, _, runs = followed
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


def table(out: Path, run: OfflineRun, name: str) -> dict[str, Any]:
    """A table that a run has logged."""
    found: dict[str, Any] = json.loads(
        next(out.glob(f"wandb/*/files/{run.summary[f'{name}/path']}")).read_text()
    )
    return found


def test_the_test_figures_are_a_table_with_a_row_for_each_model(
    followed: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    out, _, runs = followed
    told = table(out, runs["student"], "test_figures")
    assert told["columns"] == ["model", "top1", "top1_low", "nll"]
    assert told["data"] == [
        ["teacher", 0.9, 0.88, None],
        ["labels_only", 0.8, 0.77, None],
        ["student", 0.85, 0.82, 0.5],
    ]


def test_the_examples_are_a_table_of_images_with_what_both_models_say(
    followed: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    artifact = next(
        each for each in followed[2]["student"].artifacts if each.name.endswith("-examples")
    )
    files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    told = json.loads(files["examples.table.json"].read_text())
    rows = [dict(zip(told["columns"], row, strict=True)) for row in told["data"]]
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
    followed: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    out, _, runs = followed
    for role, right in (("teacher", 3), ("labels_only", 2), ("student", 2)):
        told = table(out, runs["student"], f"confusion/{role}_table")
        assert told["columns"] == ["Actual", "Predicted", "nPredictions"]
        assert len(told["data"]) == 9
        assert sum(count for actual, said, count in told["data"] if actual == said) == right
    assert ["dog", "owl", 1] in told["data"]
    chart = runs["student"].config["_wandb/visualize/confusion/student"]
    assert chart["panel_config"]["panelDefId"] == "wandb/confusion_matrix/v1"


def test_what_the_teacher_knows_is_told_when_the_students_training_begins(
    followed: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    out, _, runs = followed
    assert table(out, runs["student"], "teacher_similar_classes")["data"] == [["cat", "dog", 0.2]]
    assert runs["student"].history[0]["teacher_entropy/nrows"] == 2
    entropy = table(out, runs["student"], "teacher_entropy")
    assert (entropy["columns"], entropy["data"][1]) == (
        ["temperature", "mean_nats", "of_uniform"],
        [4.0, 0.9, 0.82],
    )


def handed(run: OfflineRun, *, used: bool) -> dict[str, Any]:
    """The artifacts that a run used, or made, by kind."""
    return {
        each.type: each
        for each in run.artifacts
        if each.use_after_commit == used and each.type != "run_table"
    }


def test_what_a_run_makes_is_what_the_next_one_uses(
    followed: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    _, _, runs = followed
    assert {stage: set(handed(run, used=True)) for stage, run in runs.items()} == {
        "teacher": {"split"},
        "labels_only": {"split"},
        "student": {"split", "teacher"},
    }
    assert {stage: set(handed(run, used=False)) for stage, run in runs.items()} == {
        "teacher": {"teacher"},
        "labels_only": set(),
        "student": {"student", "run"},
    }
    made, used = (
        handed(runs["teacher"], used=False)["teacher"],
        handed(runs["student"], used=True)["teacher"],
    )
    assert (made.name, made.digest) == (used.name, used.digest)  # for W&B the same version, then
    assert (made.name, sorted(made.aliases)) == ("teacher-wrn_16_2", [SHA[:12], "latest"])
    splits = {handed(run, used=True)["split"].digest for run in runs.values()}
    assert len(splits) == 1


def test_each_artifact_says_what_it_is_and_what_it_was_made_with(
    followed: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    out, _, runs = followed
    used, made = handed(runs["student"], used=True), handed(runs["student"], used=False)
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
    assert {entry.path for entry in made["student"].manifest.contents} == {
        "student/model.safetensors"
    }
    assert {entry.path for entry in made["run"].manifest.contents} == {
        "config.yaml",
        "results.json",
        "predictions.parquet",
        "examples.parquet",
    }
    for artifact in made.values():
        assert json.loads(artifact.metadata)["uses"] == [
            {"kind": "split", "name": "photos-split", "identity": "fe" * 32},
            {"kind": "teacher", "name": "teacher-wrn_16_2", "identity": SHA},
        ]


def test_no_secret_and_no_machine_path_is_in_any_record_or_told_file(
    followed: tuple[Path, list[str], dict[str, OfflineRun]],
) -> None:
    out, _, runs = followed
    for read in runs.values():
        for artifact in read.artifacts:
            for entry in artifact.manifest.contents:
                told = Path(entry.local_path)  # where `wandb sync` finds the file; it is not sent
                assert told.is_relative_to(out)
                text = (
                    str(pd.read_parquet(told).to_dict())
                    if told.suffix == ".parquet"
                    else told.read_text(errors="replace")
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


def test_nothing_of_wandb_stays_in_the_process(tmp_path: Path) -> None:
    before = dict(os.environ), sys.exit, sys.excepthook
    whole_run(tmp_path / "fm", {"wandb": wandb()})
    assert (dict(os.environ), sys.exit, sys.excepthook) == before


def test_two_runs_that_are_open_at_the_same_time_do_not_mix(tmp_path: Path) -> None:
    first, second = (
        tracker(tmp_path / name, {"wandb": wandb()}, [], name=name) for name in ("a", "b")
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


def test_what_was_found_has_a_run_with_the_curves_of_its_training(tmp_path: Path) -> None:
    following = tracker(tmp_path / "fm", {"wandb": wandb()}, [])
    for stage in ("teacher", "labels_only", "student"):
        following.finish(stage, TEACHER, None, points)
    following.log_results(with_home(RESULTS, tmp_path), files(tmp_path / "fm"))
    following.close(exit_code=0)
    runs = offline_runs(tmp_path / "fm")
    assert {
        stage: len([row for row in read.history if "train/loss" in row])
        for stage, (read,) in runs.items()
    } == dict.fromkeys(runs, 3)
    assert set(runs) == {"teacher", "labels_only", "student"}
    assert runs["student"][0].summary["test.student.top1"] == 0.85


def test_trials_of_a_sweep_do_not_each_tell_of_the_teacher_that_they_share(tmp_path: Path) -> None:
    following = tracker(tmp_path / "fm", {"wandb": wandb()}, [], shares=True)
    for stage in ("teacher", "labels_only", "student"):
        following.finish(stage, TEACHER, None, points)
    following.close(exit_code=0)
    assert set(offline_runs(tmp_path / "fm")) == {"student"}


def test_a_training_that_goes_on_is_the_same_run_and_has_all_its_points_once(
    tmp_path: Path,
) -> None:
    for code, before, epochs in (
        (130, 0, 2),
        (0, 3, 3),
    ):  # stopped after 4 points, of which 3 were saved
        following = tracker(tmp_path / "fm", {"wandb": wandb()}, [])
        train(following, "student", epochs=epochs, before=before)
        following.close(exit_code=code)
        following.close(exit_code=1)  # a second time changes nothing
    stopped, finished = offline_runs(tmp_path / "fm")["student"]
    assert stopped.run.run_id == finished.run.run_id
    assert (stopped.exit_code, finished.exit_code) == (130, 0)
    assert [row["step"] for row in stopped.history] == [5, 10, 15, 20]
    assert [row["step"] for row in finished.history] == [5, 10, 15, 20, 25, 30]
    assert finished.summary["validation/best_top1"] == 1.0


def test_a_training_anew_after_one_that_finished_is_another_run(tmp_path: Path) -> None:
    for _ in range(2):
        following = tracker(tmp_path / "fm", {"wandb": wandb()}, [])
        train(following, "student")
        following.close(exit_code=0)
    first, second = offline_runs(tmp_path / "fm")["student"]
    assert first.run.run_id != second.run.run_id


def test_what_a_damaged_memory_of_a_run_costs_is_another_run(tmp_path: Path) -> None:
    (tmp_path / "fm" / "wandb").mkdir(parents=True)
    (tmp_path / "fm" / "wandb" / "student.json").write_text('{"id": "a')
    said: list[str] = []
    following = tracker(tmp_path / "fm", {"wandb": wandb()}, said)
    train(following, "student", before=3)
    following.close(exit_code=0)
    assert len(said) == 1
    assert len(offline_runs(tmp_path / "fm")["student"][0].history) == 6


def test_disabled_writes_nothing_and_says_nothing(tmp_path: Path) -> None:
    assert whole_run(tmp_path / "fm", {"wandb": wandb(mode="disabled")}) == []
    assert not (tmp_path / "fm" / "wandb").exists()


def test_a_mode_of_the_environment_counts_where_none_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert whole_run(tmp_path / "fm", {"wandb": wandb(mode="auto")}) == []


def in_a_process(body: str, out: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `body` with `following`, a tracker in mode 'auto', in a process of its own,
    at a home where nobody is logged in.
    """
    script = f"""
        import os, signal, subprocess, time
        from pathlib import Path
        from tests.tracking.runs import *
        said = []
        following = tracker(Path({str(out)!r}), {{"wandb": wandb(mode="auto")}}, said)
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
    text = textwrap.dedent(script) + textwrap.dedent(body) + '\nprint("\\n".join(said))\n'
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


def test_nobody_logged_in_is_offline_without_a_question(tmp_path: Path) -> None:
    done = in_a_process(
        'train(following, "teacher")\nfollowing.close(exit_code=0)', tmp_path / "fm"
    )
    assert done.stdout.startswith(
        "W&B: offline (nobody is logged in); to upload it later: wandb sync "
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(offline_runs(tmp_path / "fm")["teacher"][0].history) == 6


def test_under_an_agent_only_the_student_takes_the_trials_identity(tmp_path: Path) -> None:
    body = (
        'for stage in ("teacher", "labels_only", "student"): train(following,'
        " stage)\nfollowing.close(exit_code=0)"
    )
    done = in_a_process(
        body,
        tmp_path / "fm",
        WANDB_SWEEP_ID="sweep9",
        WANDB_RUN_ID="trial7",
        WANDB_PROJECT="swept",
        WANDB_MODE="offline",
    )
    assert done.stderr == ""
    runs = offline_runs(tmp_path / "fm")
    assert set(runs) == {"student"}
    assert (
        runs["student"][0].run.run_id,
        runs["student"][0].run.sweep_id,
        runs["student"][0].run.project,
    ) == ("trial7", "sweep9", "swept")


def test_without_an_agent_a_given_identity_is_the_students(tmp_path: Path) -> None:
    body = (
        'for stage in ("teacher", "student"): train(following, stage)\nfollowing.close(exit_code=0)'
    )
    in_a_process(body, tmp_path / "fm", WANDB_RUN_ID="mine", WANDB_MODE="offline")
    runs = offline_runs(tmp_path / "fm")
    assert runs["student"][0].run.run_id == "mine"
    assert runs["teacher"][0].run.run_id != "mine"


def test_ctrl_c_ends_the_run_with_its_exit_code_and_all_points(tmp_path: Path) -> None:
    body = """
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background ignores it
        try:
            train(following, "teacher")
            os.killpg(0, signal.SIGINT)
            time.sleep(30)
        finally:
            following.close(exit_code=130)
    """
    done = in_a_process(body, tmp_path / "fm")
    assert done.returncode == -signal.SIGINT
    (read,) = offline_runs(tmp_path / "fm")["teacher"]
    assert (read.exit_code, len(read.history)) == (130, 6)


def test_a_tracker_that_dies_is_told_in_a_line_and_the_run_goes_on(tmp_path: Path) -> None:
    body = """
        train(following, "teacher")
        for pid in subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True).stdout.split():
            try: os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError: pass
        time.sleep(0.2)
        following.end("teacher", exit_code=0)
        train(following, "student")
        following.close(exit_code=0)
    """
    done = in_a_process(body, tmp_path / "fm", WANDB_MODE="offline")
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("logger wandb failed (")
    assert lines[1].endswith("is left out from here on; the run goes on.")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_key_that_the_server_refuses_means_offline(tmp_path: Path) -> None:
    with serving(refuses=True) as server:
        body = 'train(following, "teacher")\nfollowing.close(exit_code=0)'
        done = in_a_process(
            body, tmp_path / "fm", WANDB_API_KEY="k" * 40, WANDB_BASE_URL=server.url
        )
    assert done.stdout.startswith("W&B: offline (")
    assert "401" in done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    assert len(offline_runs(tmp_path / "fm")["teacher"][0].history) == 6


def test_online_the_server_gets_runs_figures_files_and_lineage_and_nothing_of_the_machine(
    tmp_path: Path,
) -> None:
    out = tmp_path / "fm"
    with serving() as server:
        done = in_a_process(
            'said += whole_run(Path(following._out), {"wandb": wandb(mode="auto")})',
            out,
            WANDB_API_KEY="k" * 40,
            WANDB_BASE_URL=server.url,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"W&B: {server.url}/me/kd_app/runs/")
    assert len(done.stdout.splitlines()) == 1
    opened = [said for said in server.said("UpsertBucket") if said["jobType"]]
    assert {(said["jobType"], said["groupName"], *said["tags"]) for said in opened} == {
        (stage, "fm", "first", "small") for stage in ("teacher", "labels_only", "student")
    }
    linked(server)
    assert sum('"exitcode":0' in text for text in server.texts) == 3
    everything = "".join(server.texts)
    assert "test.student.top1" in everything
    for private in (SECRET, str(tmp_path), str(Path.cwd()), sys.prefix):
        assert private not in everything


def linked(server: Server) -> None:
    """The server was told which artifacts each run used, and which it made."""
    made = [
        said["input"]
        for said in server.said("CreateArtifact")
        if said["input"]["artifactTypeName"] != "run_table"
    ]
    names = {said["input"]["runName"]: said["input"] for said in server.said("UseArtifact")}
    assert len(names) == 3
    assert len(server.said("UseArtifact")) == 4  # the split three times, the teacher once
    teachers = [each for each in made if each["artifactTypeName"] == "teacher"]
    assert len({each["digest"] for each in teachers}) == 1
    assert [each["runName"] is None for each in teachers].count(
        True
    ) == 1  # used by the student's run, made by the teacher's own
    assert {each["artifactTypeName"] for each in made if each["runName"]} == {
        "teacher",
        "student",
        "run",
    }


def test_what_was_linked_offline_is_linked_when_it_is_uploaded_later(tmp_path: Path) -> None:
    out = tmp_path / "fm"
    whole_run(out, {"wandb": wandb()})
    runs = sorted(str(Path(path).parent) for path in out.glob("wandb/offline-run-*/*.wandb"))
    offline_runs(out)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    with serving() as server:
        words = [str(Path(sys.executable).with_name("wandb")), "sync", *runs]
        online = {
            "HOME": str(tmp_path),
            "WANDB_API_KEY": "k" * 40,
            "WANDB_BASE_URL": server.url,
            "WANDB_ERROR_REPORTING": "false",
        }
        subprocess.run(
            words,
            env={**clean, **online},
            cwd=tmp_path,
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
    linked(server)
    assert sorted(len(history) for history in server.histories.values()) == [6, 6, 8]


def test_online_a_run_that_goes_on_is_the_same_one_with_all_its_points_once(tmp_path: Path) -> None:
    with serving() as server:
        for code, words in ((130, "epochs=2"), (0, "epochs=3, before=3")):
            body = f'train(following, "student", {words})\nfollowing.close(exit_code={code})'
            done = in_a_process(
                body, tmp_path / "fm", WANDB_API_KEY="k" * 40, WANDB_BASE_URL=server.url
            )
            assert (done.returncode, done.stderr) == (0, "")
    (history,) = server.histories.values()
    assert [row["step"] for row in history] == [5, 10, 15, 20, 25, 30]


def test_a_fault_of_one_tracker_leaves_the_others_alone(tmp_path: Path) -> None:
    said: list[str] = []
    broken = tmp_path / "broken"
    broken.write_text("a file where a folder should be")
    following = Tracker(
        {"wandb": wandb()},
        out=broken / "fm",
        name="fm",
        group="fm",
        tags=[],
        config={},
        say=said.append,
    )
    listen: Any = following.start("teacher")
    listen({"train/loss": 1.0}, 1)
    following.close(exit_code=0)
    assert len(said) == 1
    assert said[0].startswith("logger wandb failed (NotADirectoryError: ")
