"""A run's folder from somebody else: measured, read and learned from, without running
what it names or writing where it says.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

import kd_app
from kd_app.config import RequestError
from tests.builders import accept_changes, results, stage, teacher_folder
from tests.commands.call import TINY, call, expect_refusal, snapshot, succeed
from tests.security.payloads import change_record, plain, touching, write_zip


def evaluate(run: Path, *words: str) -> str:
    return succeed(f"run={run}", "out=again", "limit=2", *words, command="kd-evaluate")


def not_evaluated(run: Path, *words: str) -> str:
    return expect_refusal(f"run={run}", "out=again", *words, command="kd-evaluate")


NOT_BUILT = [
    "callbacks.x",
    "logger.x",
    "loss.soft_target",
    "optimizer",
    "scheduler",
    "teacher.loss.x",
]
BUILT = ["data.source", "controls.labels_only.student"]
"""Parts that a measurement builds; more of them in tests/run/test_open_run.py."""


def test_what_a_measurement_does_not_need_is_not_built(run: Path, mark: Path) -> None:
    for place in NOT_BUILT:
        change_record(run / "config.yaml", place, touching(mark))
    evaluate(run)


def test_a_training_that_is_not_ours_is_refused(run: Path, mark: Path) -> None:
    change_record(run / "config.yaml", "loss.soft_target", touching(mark))
    words = (f"run={run}", "steps=[finetune]", "out=small")
    assert "names code that is not part of kd_app" in expect_refusal(*words, command="kd-compress")


@pytest.mark.parametrize("place", BUILT)
def test_a_part_that_is_not_ours_is_refused_though_the_run_allowed_it(
    place: str, run: Path, mark: Path
) -> None:
    change_record(run / "config.yaml", place, touching(mark))
    change_record(run / "config.yaml", "allow", ["os"])
    not_evaluated(run)


def test_an_interpolation_does_not_become_a_part_later(run: Path, mark: Path) -> None:
    hidden = '${oc.create:"{_target_: os.mkdir, path: ' + str(mark) + '}"}'
    change_record(run / "config.yaml", "trainer.max_epochs", hidden)
    assert "trainer.max_epochs=" in not_evaluated(run)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system",
        "!!python/object/new:os.system",
        "!!python/object/apply:subprocess.check_output",
    ],
)
def test_tags_of_yaml_make_no_objects(tag: str, run: Path, mark: Path) -> None:
    payload = f"x: {tag} [touch {mark}]\n"
    whole = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(whole + payload, encoding="utf-8")
    accept_changes(run)
    assert "config.yaml' can't be read" in not_evaluated(run)
    assert "config.yaml' can't be read" in expect_refusal(*TINY, f"out={run}")


@pytest.mark.parametrize(
    "content", ["[1, 2]", "text", "", "{data: 1}", "{trainer: x, stages: [1], data: 2}"]
)
def test_a_configuration_that_is_none_is_refused(content: str, run: Path) -> None:
    (run / "config.yaml").write_text(content, encoding="utf-8")
    accept_changes(run)
    assert "config.yaml' can't be read" in not_evaluated(run)


@pytest.mark.parametrize("there", [True, False])
def test_the_run_does_not_say_where_this_machine_writes(
    there: bool, run: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    if there:
        elsewhere.mkdir()
    change_record(run / "config.yaml", "stages", str(elsewhere))
    content = results(run)
    content["stages"] = [
        (
            {**each, "path": str(elsewhere / each["name"])}
            if each["name"].startswith("answers")
            else each
        )
        for each in content["stages"]
    ]
    accept_changes(run, **content)
    evaluate(run)
    assert elsewhere.exists() == there
    assert not there or not list(elsewhere.iterdir())
    assert {Path(each["path"]).parent for each in results(Path("again"))["stages"]} == {
        Path("runs/.stages").absolute()
    }


@pytest.mark.parametrize("role", ["../../evil", "/tmp/evil", "a\nb", "labels_only/../.."])
def test_models_are_called_by_the_names_of_the_configuration(role: str, run: Path) -> None:
    content = results(run)
    content["models"][role] = content["models"]["student"]
    accept_changes(run, **content)
    assert "name models that its configuration does not" in not_evaluated(run)


def test_a_stage_or_a_teacher_that_the_run_points_at_is_no_pickle(
    run: Path, tmp_path: Path, mark: Path
) -> None:
    theirs = teacher_folder(tmp_path / "theirs" / "model").parent
    write_zip(theirs / "model" / "model.safetensors", mark)
    before = (run / "teacher" / "reference.json").read_text(encoding="utf-8")
    change_record(run / "teacher" / "reference.json", "stage", str(theirs))
    assert "can't be read as weights" in not_evaluated(run)
    (run / "teacher" / "reference.json").write_text(before, encoding="utf-8")
    accept_changes(run)
    content = results(run)
    content["stages"] = [
        {**each, "path": str(theirs)} if each["name"] == "labels_only" else each
        for each in content["stages"]
    ]
    accept_changes(run, **content)
    assert "can't be read as weights" in not_evaluated(run)


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"stage": [1]}'])
def test_a_reference_that_is_none_is_refused(content: str, run: Path) -> None:
    (run / "teacher" / "reference.json").write_text(content, encoding="utf-8")
    accept_changes(run)
    assert "does not record where the teacher is" in not_evaluated(run)
    with pytest.raises(RequestError, match="does not record where the teacher is"):
        kd_app.load_run(run).load_teacher()


def test_tables_that_are_pickles_are_not_read(run: Path, mark: Path) -> None:
    plain(run / "predictions.parquet", mark)
    plain(run / "examples.parquet", mark)
    plain(run / "metrics.csv", mark)
    accept_changes(run)
    loaded = kd_app.load_run(run)
    for name in ("predictions", "examples", "curves"):
        with pytest.raises(ValueError, match=r"magic bytes|Parquet|decode|codec"):
            getattr(loaded, name)
    assert list(kd_app.load_runs(run)["status"]) == ["finished"]


def test_a_run_to_learn_from_is_weights_and_their_description(run: Path, mark: Path) -> None:
    change_record(run / "config.yaml", "callbacks.x", touching(mark))
    write_zip(run / "student" / "pytorch_model.bin", mark)
    succeed(
        *TINY[:2],
        "controls=[]",
        "examples=0",
        f"teacher.checkpoint={run}",
        "out=next",
        "stages=stages",
    )
    after = results(Path("next"))
    assert after["models"]["teacher"]["sha256"] == results(run)["models"]["student"]["sha256"]
    assert "teacher" not in {stage["name"] for stage in after["stages"]}


@pytest.mark.parametrize("runs", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_trial_that_somebody_laid_into_a_sweep_says_not_what_is_run_or_where_is_written(
    runs: bool, run: Path, sample_run: Path, tmp_path: Path, mark: Path
) -> None:
    theirs = Path(shutil.copytree(run, Path("sweep/7")))
    content: dict[str, Any] = results(theirs)
    content["validation"]["student"]["top1"] = 1.0
    content["test"] = None
    accept_changes(theirs, **content)
    for key in ("out", "stages"):
        change_record(theirs / "config.yaml", key, str(tmp_path / "elsewhere"))
    elsewhere = {
        "_target_": "kd_app.tracking.MLflow",
        "experiment": "x",
        "uri": "http://127.0.0.1:9",
    }
    change_record(theirs / "config.yaml", "logger.elsewhere", elsewhere)
    if runs:
        change_record(theirs / "config.yaml", "callbacks.x", touching(mark))
        change_record(theirs / "config.yaml", "allow", ["os"])
    result = call("-m", *TINY, "seed=0", "out=sweep", f"stages={sample_run / 'stages'}")
    assert "Trial 7 is the best on validation; testing it" in result.out
    assert not (tmp_path / "elsewhere").exists()
    assert result.code == (2 if runs else 0)
    assert ("callbacks.x._target_ was 'os.mkdir', now None" in result.err) == runs
    assert "elsewhere" not in result.out


def test_a_run_is_read_with_its_own_stages_where_they_are_and_nothing_of_it_changes(
    run: Path, sample_run: Path
) -> None:
    before = snapshot(run)
    kd_app.load_run(run).load_student()
    evaluate(run)
    assert snapshot(run) == before
    assert stage(run, "student").is_dir()
    assert {Path(each["path"]).parent for each in results(Path("again"))["stages"]} == {
        sample_run / "stages"
    }
    assert not Path("runs").exists()
