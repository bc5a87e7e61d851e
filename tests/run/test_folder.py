"""The folder of a run: who may use it, and what a refused job leaves behind."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.digest import hash_file
from kd_app.run.folder import (
    build_run_name,
    check_out,
    check_stages,
    claim_folder,
    find_differences,
)

GROUPS = {"data": {}, "student": {}, "trainer": {}, "verdict": {}, "stages": "s"}
CONFIG = {**GROUPS, "seed": 1, "loss": {"weight": 2.0}}


def claim(out: Path, config: dict[str, Any], *, overwrite: bool = False) -> None:
    with claim_folder(out, config, overwrite=overwrite):
        (out / "results.json").write_text("{}", encoding="utf-8")


def refuse(out: Path, config: dict[str, Any], *, overwrite: bool = False) -> list[str]:
    """Refuse a job after its first file; the files that the job was shown."""
    names: list[str] = []

    def work() -> None:
        with claim_folder(out, config, overwrite=overwrite):
            names.extend(list_names(out))
            (out / "results.json").write_text("other", encoding="utf-8")
            raise RequestError("refused")

    with pytest.raises(RequestError, match="refused"):
        work()
    return names


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_new_folder_has_the_configuration_and_may_be_claimed_again(tmp_path: Path) -> None:
    out = tmp_path / "a" / "run"
    for _ in range(2):
        claim(out, CONFIG)
    assert yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8")) == CONFIG
    assert list_names(out) == ["config.yaml", "results.json"]


def test_another_configuration_is_refused_with_the_differences(tmp_path: Path) -> None:
    claim(tmp_path / "run", CONFIG)
    with pytest.raises(
        RequestError, match=r"loss.weight was 2.0, now 3.0. Nothing was overwritten"
    ):
        claim(tmp_path / "run", {**CONFIG, "loss": {"weight": 3.0}})
    with pytest.raises(RequestError, match="and 12 more"):
        claim(tmp_path / "run", {f"k{number}": number for number in range(18)})


def test_a_configuration_that_was_edited_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    claim(out, CONFIG)
    files = [{"name": "config.yaml", "sha256": hash_file(out / "config.yaml")}]
    (out / "results.json").write_text(json.dumps({"files": files}), encoding="utf-8")
    edited = {**CONFIG, "seed": 2}
    (out / "config.yaml").write_text(yaml.safe_dump(edited), encoding="utf-8")
    for config in (CONFIG, edited):
        with pytest.raises(RequestError, match=r"config.yaml' has changed since the run wrote it"):
            claim(out, config)
    assert yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8")) == edited
    claim(out, CONFIG, overwrite=True)


def test_the_configuration_is_that_of_the_results(tmp_path: Path) -> None:
    out = tmp_path / "run"
    claim(out, {**CONFIG, "tags": ["a"]})
    with claim_folder(out, {**CONFIG, "tags": ["b"]}, overwrite=False):
        pass  # shows the results
    assert yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))["tags"] == ["a"]
    with claim_folder(out, {**CONFIG, "tags": ["b"]}, overwrite=False):
        (out / "results.json").write_text("other", encoding="utf-8")
    assert yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))["tags"] == ["b"]


def test_more_epochs_are_refused_with_what_works(tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = compose_config("distill", ["trainer.max_epochs=2"])
    claim(out, config)
    with pytest.raises(RequestError, match=r"trainer\.max_epochs was 2, now 9") as refusal:
        claim(out, compose_config("distill", ["trainer.max_epochs=9"]))
    assert f"student.checkpoint={out} and another out=" in str(refusal.value)


def test_a_setting_that_is_newer_than_the_run_does_not_make_another_run(tmp_path: Path) -> None:
    config = compose_config("distill", [])
    old = {**config, "data": {key: each for key, each in config["data"].items() if key != "mix"}}
    claim(tmp_path / "run", old)
    claim(tmp_path / "run", config)


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    for overwrite in (False, True):
        with pytest.raises(RequestError, match=r"it contains thesis.txt, but no config.yaml"):
            claim(tmp_path, CONFIG, overwrite=overwrite)
    assert list_names(tmp_path) == ["thesis.txt"]


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with (
        claim_folder(tmp_path / "run", CONFIG, overwrite=False),
        pytest.raises(RequestError, match="Another process works in"),
    ):
        claim(tmp_path / "run", CONFIG)


def test_a_lock_file_that_nobody_holds_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    claim(tmp_path / "run", CONFIG)
    claim(tmp_path / "run", CONFIG)


def test_after_a_refused_job_new_folders_are_gone(tmp_path: Path) -> None:
    refuse(tmp_path / "a" / "b", CONFIG)
    assert list_names(tmp_path) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_after_a_refused_job_an_earlier_run_is_restored(tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "run"
    claim(out, CONFIG)
    (out / "split.csv").write_text("index", encoding="utf-8")
    names = refuse(out, {**CONFIG, "tags": ["x"]}, overwrite=overwrite)
    assert ("split.csv" in names) is not overwrite
    assert (out / "results.json").read_text(encoding="utf-8") == "{}"
    assert (out / "split.csv").read_text(encoding="utf-8") == "index"
    assert yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8")) == CONFIG


def test_an_overwritten_run_loses_its_own_files_and_no_others(tmp_path: Path) -> None:
    claim(tmp_path, CONFIG)
    for name in ("split.csv", "notes.txt"):
        (tmp_path / name).touch()
    claim(tmp_path, {**CONFIG, "seed": 2}, overwrite=True)
    assert list_names(tmp_path) == ["config.yaml", "notes.txt", "results.json"]
    refuse(tmp_path, {**CONFIG, "seed": 3}, overwrite=True)
    assert list_names(tmp_path) == ["config.yaml", "notes.txt", "results.json"]


def test_a_folder_with_another_programs_configuration_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: 1", encoding="utf-8")
    (tmp_path / "thesis.txt").touch()
    (tmp_path / ".download.partial").touch()
    with pytest.raises(RequestError, match=r"its config.yaml was not written by kd_app"):
        claim(tmp_path, CONFIG, overwrite=True)
    with pytest.raises(RequestError, match="another configuration"):
        claim(tmp_path, CONFIG)
    assert (tmp_path / ".download.partial").exists()
    assert list_names(tmp_path) == ["config.yaml", "thesis.txt"]
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == "a: 1"


def test_differences_are_those_that_identify_the_run() -> None:
    before = {"seed": 1, "out": "a", "loss": {"weight": 1.0}}
    now = {"seed": 1, "out": "b", "loss": {"weight": 2.0, "temperature": 4.0}}
    assert find_differences(before, now) == [
        ("loss.weight", 1.0, 2.0),
        ("loss.temperature", None, 4.0),
    ]


def test_a_run_is_named_by_data_models_and_settings() -> None:
    def name(*overrides: str) -> str:
        return build_run_name(
            compose_config("distill", ["teacher.name=resnet50.a1_in1k", *overrides])
        )

    assert name().startswith("digits-resnet50.a1_in1k-")
    assert name() == name("tags=[a]", "out=elsewhere", "student.license=mit")
    assert name() != name("seed=3")


@pytest.mark.parametrize("out", ["s", "s/run", "x/../s/run", "link/run"])
def test_a_run_is_never_in_the_folder_of_the_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s").mkdir()
    Path("link").symlink_to("s")
    with pytest.raises(RequestError, match=f"out='{out}' (is|lies in) the folder of .* stages='s'"):
        check_out(Path(out), Path("s"))
    check_out(Path("runs/a"), Path("runs/.stages"))
    check_out(Path("s2"), Path("s"))


def test_a_job_does_not_write_into_the_folder_of_its_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for out in (tmp_path / "run", tmp_path / "run" / ".." / "run"):
        with pytest.raises(RequestError, match="is the folder of the run itself"):
            check_out(out, tmp_path / "s", tmp_path / "run")
    check_out(tmp_path / "run" / "export", tmp_path / "s", tmp_path / "run")


def test_stages_that_cant_be_written_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_stages(Path("runs/.stages"))
    Path("file").touch()
    with pytest.raises(RequestError, match=r"stages='file', can't be written .*it is a file"):
        check_stages(Path("file"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(RequestError, match=r"stages='runs/.stages', .* may not write to it"):
        check_stages(Path("runs/.stages"))
    assert not Path("runs").exists()


def test_temporary_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    claim(tmp_path / "run", CONFIG)
    leftover = tmp_path / "run" / ".results.json.17.partial"
    leftover.touch()
    claim(tmp_path / "run", CONFIG)
    assert not leftover.exists()
