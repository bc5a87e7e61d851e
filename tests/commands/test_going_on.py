"""The same words again, other words in the same folder, a fresh start, and two at a
time.
"""

import json
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from kd_app.config import RequestError
from kd_app.config.compose import choose_all_labels, compose_config
from kd_app.reporting.results import read
from kd_app.run.folder import build_run_name, claim_folder
from kd_app.specs.spec import build_spec
from tests.builders import results, student_sha256
from tests.commands.call import (
    TINY,
    call,
    expect_refusal,
    list_epochs,
    paragraph,
    snapshot,
    succeed,
)


@pytest.fixture
def words(sample_run: Path, run: Path) -> tuple[str, ...]:
    """What made the finished run that lies in ``run``."""
    return (*TINY, f"out={run}", f"stages={sample_run / 'stages'}")


def test_the_same_words_again_say_that_it_is_done_and_show_the_result(
    words: tuple[str, ...], run: Path
) -> None:
    succeed(*words)  # writes where the copy lies into its config.yaml
    before = snapshot(run)
    out = succeed(*words)
    assert f"{run} holds this run, finished." in out
    assert "top-1 accuracy" in out
    assert "Verdict:" in out
    assert list_epochs(out) == []
    assert snapshot(run) == before


def test_where_and_how_may_differ_and_what_may_not(words: tuple[str, ...], run: Path) -> None:
    assert "finished" in succeed(
        *words, "tags=[again]", "data.num_workers=1", "data.cache=disk", "logger=[csv,tensorboard]"
    )
    message = expect_refusal(*words, "seed=1", "loss.soft_target.temperature=2")
    assert f"{str(run)!r} holds a run with another configuration: " in message
    assert "seed was 0, now 1" in message
    assert "loss.soft_target.temperature was 4.0, now 2" in message
    assert "Nothing was overwritten" in message
    assert "overwrite=true" in message


def test_a_fresh_start_replaces_the_run_and_keeps_other_files_and_the_stages(
    words: tuple[str, ...], sample_run: Path, run: Path
) -> None:
    (run / "left.txt").touch()
    stages = {path.name for path in (sample_run / "stages").iterdir()}
    assert list_epochs(succeed(*words, "loss.soft_target.temperature=2", "overwrite=true"))
    assert results(run)["config"]["loss"]["soft_target"]["temperature"] == 2
    assert (run / "left.txt").exists()
    assert {stage["name"]: stage["status"] for stage in results(run)["stages"]}[
        "teacher"
    ] == "reused"
    assert stages < {path.name for path in (sample_run / "stages").iterdir()}
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == [".lock"]


@pytest.mark.parametrize(
    "wrong", ["student.checkpoint=nowhere.pt", "loss.cross_entropy.class_weights=[1,2]"]
)
def test_a_fresh_start_that_is_refused_leaves_everything_as_it_was(
    words: tuple[str, ...], run: Path, wrong: str
) -> None:
    (run / "left.txt").touch()
    expect_refusal(*words, "overwrite=true", wrong)
    assert (run / "left.txt").exists()
    assert "finished" in succeed(*words)


def test_a_folder_that_is_no_runs_is_neither_emptied_nor_written_to(sample_run: Path) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("all of it", encoding="utf-8")
    stages = f"stages={sample_run / 'stages'}"
    assert (
        "'mine' is not a run folder: it contains thesis.txt, but no config.yaml"
        in expect_refusal(*TINY, "out=mine", stages, "overwrite=true")
    )
    assert "'mine' is not a run folder" in expect_refusal(*TINY, "out=mine", stages)
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.txt"]


def test_an_empty_folder_may_become_a_runs() -> None:
    Path("mine").mkdir()
    with claim_folder(Path("mine"), {}, overwrite=False):
        assert Path("mine/config.yaml").is_file()


def test_two_commands_in_one_folder_at_a_time_are_one_too_many(
    words: tuple[str, ...], run: Path
) -> None:
    with FileLock(run / ".lock"):
        assert "Another process works in" in expect_refusal(*words)
        assert "Another process works in" in expect_refusal(*words, "overwrite=true")
    assert "finished" in succeed(*words)


def test_the_same_words_without_a_folder_find_the_same_folder(sample_run: Path) -> None:
    stages = f"stages={sample_run / 'stages'}"
    succeed(*TINY, stages)
    assert "holds this run, finished" in succeed(*TINY, stages)
    words = choose_all_labels(TINY)
    configs = [compose_config("distill", [*words, f"seed={seed}"]) for seed in (0, 1)]
    names = [build_run_name(build_spec(config).config) for config in configs]
    assert [path.name for path in Path("runs").iterdir()] == names[:1]
    assert names[0] != names[1]
    assert [name[:-6] for name in names] == ["digits-resnet8-resnet8-"] * 2


def test_results_that_are_cut_off_are_made_again_without_training(
    words: tuple[str, ...], sample_run: Path, run: Path
) -> None:
    whole = results(run)
    for cut in (0, 1000):
        (run / "results.json").write_text(json.dumps(whole)[:cut], encoding="utf-8")
        with pytest.raises(RequestError, match="can't be read"):
            read(run / "results.json")
    stages = {path.name: path.stat().st_mtime_ns for path in (sample_run / "stages").iterdir()}
    out = succeed(*words)
    assert list_epochs(out) == []
    assert {
        path.name: path.stat().st_mtime_ns
        for path in (sample_run / "stages").iterdir()
        if path.is_dir()
    }.items() <= stages.items()
    assert {stage["status"] for stage in results(run)["stages"]} == {"reused"}
    assert results(run)["test"] == whole["test"]
    assert results(run)["verdict"] == whole["verdict"]


def test_a_configuration_that_cant_be_read_is_not_written_over(
    words: tuple[str, ...], run: Path
) -> None:
    (run / "config.yaml").write_text("seed: [", encoding="utf-8")
    assert "config.yaml' has changed since the run wrote it" in expect_refusal(*words)
    with claim_folder(run, {}, overwrite=True):
        assert not (run / "results.json").exists()


def test_a_stage_is_made_anew_when_it_is_named(
    words: tuple[str, ...], sample_run: Path, run: Path, tmp_path: Path
) -> None:
    before = student_sha256(run)
    shutil.copytree(sample_run / "stages", tmp_path / "stages")
    words = (*words[:-1], f"stages={tmp_path / 'stages'}")
    succeed(*words, "remake=[student]")
    made_anew = {stage["name"] for stage in results(run)["stages"] if stage["status"] == "computed"}
    assert "student" in made_anew
    assert student_sha256(run) == before


def test_test_never_leaves_the_test_set_alone_and_always_reads_it_later(sample_run: Path) -> None:
    words = (*TINY, "out=run", f"stages={sample_run / 'stages'}")
    assert "The test set was not read." in " ".join(succeed(*words, "test=never").split())
    assert results(Path("run"))["test"] is None
    assert results(Path("run"))["verdict"]["split"] == "validation"
    succeed(*words, "test=always")
    assert results(Path("run"))["test"] == results(sample_run / "run")["test"]
    assert "holds this run, finished" in succeed(*words, "test=never")


def test_a_folder_that_cant_be_written_is_refused() -> None:
    Path("file").touch()
    message = paragraph(call(*TINY, "out=file").err)
    assert message.startswith("The folder out='file' can't be created")


def test_a_body_that_fails_keeps_the_folder_and_one_that_is_refused_does_not() -> None:
    out = Path("deep/er/run")
    with pytest.raises(OSError, match="disk"), claim_folder(out, {}, overwrite=False):
        raise OSError("disk full")
    assert (out / "config.yaml").is_file()
    other = Path("other/run")
    with pytest.raises(RequestError), claim_folder(other, {}, overwrite=False):
        raise RequestError("no")
    assert not other.parent.exists()
