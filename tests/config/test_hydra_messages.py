"""Messages of Hydra and OmegaConf become paragraphs of our own."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from kd_app.config import RequestError
from kd_app.config.compose import check_choices, compose_config
from kd_app.config.hydra_messages import check_flags, explain_message

THEIRS = re.compile(
    r"Could not|Error merging|mismatched|in struct|full_key|object_type|Interpolation|"
    r"ConfigComposition|config group|raised while|force-add|requires --multirun"
)
"""Words of Hydra and OmegaConf that no message for users has."""


def refuse(command: str, *overrides: str) -> str:
    with pytest.raises(RequestError) as error:
        compose_config(command, overrides)
    text = str(error.value)
    assert "\n" not in text
    assert not THEIRS.search(text), text
    return text


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["+trainer=cpu"], r"trainer is chosen twice\..* write trainer=cpu without '\+'"),
        (["++trainer=cpu"], r"trainer=cpu is a choice of a group\. Remove the '\+\+'"),
        (["data@x=digits"], r"There is no group 'data@x' .*Did you mean data\?"),
        (["optimizer@s=sgd"], r"'optimizer@s' .*mean optimizer, optimizer@teacher\.optimizer\?"),
        (["seed=choice(1,2)"], r"seed=choice\(1,2\) is a sweep .*Add -m"),
        (["student.kwargs=[1]"], r"^student\.kwargs=\[1\] is a list. Expected named values"),
        (["tags={a: b}"], r"^tags=\{a: b\} has named values. Expected a list"),
        (["hydra.mode=foo"], r"hydra\.mode=foo does not fit: Invalid value 'foo', expected one of"),
        (["trainer.max_epochs=${nope}"], r"trainer\.max_epochs refers to the setting 'nope'"),
        (["seed=${oc.env:NO_SUCH}"], r"seed reads the environment variable NO_SUCH, which is not"),
        (["seed=${foo:1}"], r"seed uses \$\{foo:\.\.\.\}, but there is no such function"),
        (["seed=${student.name}", "student.name=${seed}"], r"refers to itself"),
        (["data=folder", "data.judge=x.csv"], r"belongs to data=images: choose that, or remove"),
        (["teacher=none", "teacher.checkpoint=a"], r"belongs to .*teacher=timm"),
        (["teacher=none", "teacher.name=resnet8"], r"belongs to .*teacher=timm"),
        (["teacher.kwargs={a}"], r"^'teacher\.kwargs=\{a\}' can't be read"),
        (["seed=???"], r"seed has no value, and the command needs one\. Add seed=<value>"),
    ],
)
def test_each_message_says_what_to_type_instead(overrides: Sequence[str], expected: str) -> None:
    assert re.search(expected, refuse("distill", *overrides))


def test_all_missing_settings_are_named_at_once() -> None:
    text = refuse("predict", "model=m")
    assert text.startswith("images and out have no value")
    assert "Add images=<value> out=<value>; '--help'" in text


@pytest.mark.parametrize(
    "content",
    [
        "a: [1\nb: {",
        "a:\n\tb: 1",
        "# @package _global_\ndefaults:\n  - override /nope: x\n",
        "# @package _global_\ndefaults:\n  - override /trainer: x\n",
        "# @package _global_\ndefaults:\n  - /trainer: cpu\n",
        "defaults: 3\n",
        "# @package _global_\ntrainer: [1]\n",
        "# @package _global_\nseed: ${\n",
        "defaults:\n  - {a: {b: c}}\n",
        "# @package _global_\nseed: !!python/object/apply:os.getcwd []\n",
    ],
)
def test_a_wrong_configuration_file_is_one_paragraph(tmp_path: Path, content: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(content, encoding="utf-8")
    searchpath = f"hydra.searchpath=[file://{tmp_path}]"
    refuse("distill", searchpath, "experiment=mine")


def test_an_unknown_flag_is_refused_with_the_nearest_one_and_the_setting() -> None:
    check_flags(["-m", "seed=1,2", "--config-dir=x", "--cfg", "job", "-cd", "x", "~trainer", "-1"])
    for flag, nearest in (("--multi-run", "--multirun"), ("--config_dir=a", "--config-dir")):
        with pytest.raises(RequestError, match=f"Did you mean '{nearest}'"):
            check_flags(["seed=1", flag])
    with pytest.raises(RequestError, match=r"no flag '--keep-days'.*: keep_days=<value>"):
        check_flags(["--keep-days=3"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--cfg"], "--cfg needs one of job, hydra, all, got ''"),
        (["-c", "nope"], "-c needs one of job, hydra, all, got 'nope'"),
        (["--cfg=x"], "got 'x'"),
        (["--info", "nope"], "--info needs one of all, config"),
        (["-cd"], "-cd needs a value"),
        (["--package", "-m"], "--package needs a value"),
    ],
)
def test_a_flag_without_its_value_is_refused(arguments: list[str], expected: str) -> None:
    check_flags(["--info"])
    check_flags(["-i", "seed=1"])
    with pytest.raises(RequestError, match=expected):
        check_flags(arguments)


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ("BasicSweeper does not support sweep type : INTERVAL_SWEEP", "hydra/sweeper=search"),
        ("Additional config directory '/x' not found", "--config-dir=/x is no folder"),
        ("Cannot find primary config 'x'. Check that", "--config-name=x: there is no such"),
        (
            "Primary config directory not found. Check that the config directory '/x' exists",
            "--config-path=/x: there is no such folder",
        ),
    ],
)
def test_a_flag_or_sweep_that_finds_nothing_is_explained(theirs: str, expected: str) -> None:
    assert expected in explain_message(theirs)


def test_a_pattern_of_choices_is_left_to_the_sweep() -> None:
    check_choices(["data=glob(d*)", "loss=[soft_target]"])


def test_a_paragraph_of_our_own_stays_as_it_is() -> None:
    assert refuse("distill", "loss=[1]").startswith("'loss=[1]' chooses 1. Expected a list")


def test_an_unknown_message_names_the_places_to_look_at() -> None:
    text = explain_message("Something new. Config search path: provider=x")
    assert text.startswith("The configuration can't be composed: Something new. Check the")
