"""Settings that are paths mean what is typed, and impossible paths are refused."""

import os
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from kd_app.commands.report import ReportConfig
from kd_app.config import RequestError
from kd_app.config.compose import compose_config, normalize_overrides
from kd_app.config.path_settings import PATH_KEYS, quote_path, relocate_paths, resolve_paths
from kd_app.data.csv_file import CsvFile
from kd_app.data.module import ImageData
from kd_app.jobs.compress import Compression
from kd_app.jobs.export import Export
from kd_app.jobs.predict import Prediction
from kd_app.models.spec import ModelSpec
from kd_app.specs.schema import DistillSettings, EvaluationSettings, Licensing

ODD = (
    *("photos (1)", "fotos-äöü", "bob's", 'say "hi"', "a&b", "a#b", "a=b", "[old]", "日本", "🐱"),
    *("photos, 2024", "{a: b}", "a:b", "$HOME", "a\\'b", "back\\", "2024", "true", " a ", "!x"),
)
COMMANDS = {
    "distill": "data.root={}",
    "check": "out={}",
    "evaluate": "run={} out=o",
    "compress": "run={}",
    "export": "run={}",
    "predict": "model=m out=o images={}",
    "report": "out={}",
}


def parse(override: str) -> Any:
    return OverridesParser.create().parse_overrides([override])[0].value()


def list_parts(override: str) -> list[str]:
    parsed = OverridesParser.create().parse_overrides([override])[0]
    return [str(parse(f"x={each}")) for each in parsed.sweep_string_iterator()]


names = st.text(min_size=1, max_size=12).filter(
    lambda name: name != "null" and "${" not in name and name[0] not in "~'\"" and "\0" not in name
)


@given(names)
@example("a\\")
@example("a\\\\'")
@example("null,null")
def test_the_value_of_a_path_is_what_was_typed(name: str) -> None:
    override = quote_path(f"data.root={name}")
    assert parse(override) == name
    assert quote_path(override) == override


@given(st.lists(names.filter(lambda name: "," not in name and name == name.strip()), min_size=2))
def test_in_a_sweep_commas_separate_paths(several: list[str]) -> None:
    assert list_parts(quote_path(f"data.root={','.join(several)}", is_sweep=True)) == several


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_odd_names_as_they_are(command: str) -> None:
    # one name with everything, since composing costs a tenth of a second
    name = "photos (1), [old] & {a: b} = ä 'b' \"c\" #!$日🐱\\"
    overrides = [word.format(name) for word in COMMANDS[command].split(" ")]
    config = compose_config(command, overrides)
    assert name in (config.get("out"), config.get("run"), config.get("images")) or (
        config["data"]["root"] == name
    )


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_taken_as_they_are(name: str) -> None:
    assert parse(quote_path(f"++student.checkpoint={name}")) == name
    assert parse(quote_path(f"teacher.name=local-dir:{name}")) == f"local-dir:{name}"


def test_null_quotes_interpolations_and_the_home_folder_keep_their_meaning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert parse(quote_path("data.root=null")) is None
    assert parse(quote_path("data.root='a b'")) == parse(quote_path('data.root="a b"')) == "a b"
    assert parse(quote_path("data.root=~/a (1)")) == "/home/me/a (1)"
    assert parse(quote_path("data.root=~nobody-here/x")) == "~nobody-here/x"
    assert parse(quote_path("teacher.name=local-dir:~/net")) == "local-dir:/home/me/net"
    assert compose_config("distill", ["out=${seed}/a (1)"])["out"] == "0/a (1)"
    assert compose_config("report", ["runs=['~/a (1)',b]"])["runs"] == ["/home/me/a (1)", "b"]


def test_other_settings_keep_hydras_grammar() -> None:
    for override in ("loss=[a,b]", "seed=1", "runs=[a,b]", "quantize.images=512", "~budget", "-m"):
        assert quote_path(override) == override
    assert normalize_overrides(["teacher.members.a.checkpoint=a (1)"]) == [
        "++teacher.members.a.checkpoint='a (1)'"
    ]


def test_in_a_sweep_functions_sweep_and_the_folder_does_not() -> None:
    assert quote_path("data.root=choice(a,b)", is_sweep=True) == "data.root=choice(a,b)"
    assert quote_path("data.root=choice(a,b)") == "data.root='choice(a,b)'"
    assert quote_path("out=a, b", is_sweep=True) == "out='a, b'"
    assert quote_path('data.root="a,b", c (1)', is_sweep=True) == "data.root=\"a,b\",'c (1)'"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"out": 5}, "out=5 is not a path"),
        ({"teacher": {"checkpoint": True}}, "teacher.checkpoint=True is not a path"),
        ({"runs": ["a", 5]}, "runs.1=5 is not a path"),
        ({"data": {"root": ""}}, "data.root='' is empty"),
        ({"out": "x" * 300}, "out='x+...' can't be a path: a name in it is too long"),
        ({"out": f"{__file__}/out"}, "test_path_settings.py' is a file, not a folder"),
        ({"teacher": {"name": f"local-dir:{__file__}/x"}}, "teacher.name=.* is a file"),
        ({"images": "a\0b"}, "images=.* embedded null byte"),
    ],
)
def test_an_impossible_path_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        resolve_paths(config)


def test_a_folder_that_may_not_be_entered_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(RequestError, match=r"data.root=.a. can.t be a path: permission denied"):
        resolve_paths({"data": {"root": "a"}})


def list_path_settings() -> Iterator[str]:
    """The settings whose types are paths, by the signatures of the classes."""
    owners = {
        "": (DistillSettings, EvaluationSettings, Compression, Export, Prediction, ReportConfig),
        "data.": (ImageData,),
        "data.source.": (CsvFile,),
        "license.": (Licensing,),
        "student.": (ModelSpec,),
        "teacher.": (ModelSpec,),
    }
    for prefix, classes in owners.items():
        for owner in classes:
            for name, parameter in signature(owner).parameters.items():
                if "Path" in str(parameter.annotation):
                    yield f"{prefix}{name}"


def test_every_setting_of_a_path_type_is_listed() -> None:
    # a source's root is data.root; the other paths are texts, see PATH_KEYS
    settings = set(list_path_settings()) - {"data.source.root"}
    assert settings <= set(PATH_KEYS)
    assert {"data.root", "data.unlabeled", "license.policy", "student.checkpoint"} <= settings


def test_a_file_that_exists_is_no_fault(tmp_path: Path) -> None:
    assert resolve_paths({"out": str(tmp_path)}) == {"out": str(tmp_path)}


def test_relative_paths_of_a_run_lead_from_its_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there / "photos", there / "both", here / "both"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    config = {
        "data": {"root": "photos", "name": "photos"},
        "teacher": {"checkpoint": "both", "chain": [{"checkpoint": "photos"}]},
        "student": {"checkpoint": "nowhere", "name": "local-dir:photos"},
        "stages": str(there),
        "runs": ["photos"],
    }
    assert relocate_paths(config, str(there)) == {
        "data": {"root": f"{there}/photos", "name": "photos"},
        "teacher": {"checkpoint": "both", "chain": [{"checkpoint": f"{there}/photos"}]},
        "student": {"checkpoint": "nowhere", "name": f"local-dir:{there}/photos"},
        "stages": str(there),
        "runs": [f"{there}/photos"],
    }
    for base in (None, 3, str(here)):
        assert relocate_paths(config, base) == config


def test_the_folder_of_the_stages_is_recorded_with_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_paths({"stages": "a/../s", "out": "o"}) == {
        "stages": str(tmp_path / "s"),
        "out": "o",
    }
