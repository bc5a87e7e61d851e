"""Every YAML file in conf/ composes, and its parts can be built."""

import re
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_app.config import RequestError
from kd_app.config.compose import (
    compose_config,
    explain_error,
    list_known_keys,
    normalize_overrides,
)
from kd_app.config.make import make
from kd_app.config.paths import CONF, list_choices
from kd_app.jobs.export import Export
from kd_app.specs.spec import build_spec
from kd_app.tracking import Backend

PRIMARY = {
    "distill": (),
    "check": (),
    "evaluate": ("run=a", "out=b"),
    "report": ("runs=[a]",),
    "compress": ("run=a",),
    "export": ("run=a",),
    "predict": ("model=a", "images=b", "out=c"),
}
PARTS = {"controls/_labels", "data/_images", "data/_photos", "trainer/_run"}
"""Base files of several choices."""
FILES = sorted(
    path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*/[!_]*.yaml")
)
CHOICES = [
    file
    for file in FILES
    if not file.startswith(("hydra/", "hparams_search/", "formats/", "comparison/"))
]
"""The choices of a run. Choices of searches, exports and compression have other tests.
"""
DEFAULTS = yaml.safe_load((CONF / "distill.yaml").read_text(encoding="utf-8"))["defaults"]
MANY = {
    group
    for default in DEFAULTS
    if isinstance(default, dict)
    for group, chosen in default.items()
    if isinstance(chosen, list)
}
ALONE = {
    "teacher/none": ("loss=[cross_entropy]",),
    "teacher/several": ("teacher.members.a.name=resnet8", "teacher.members.b.name=resnet14"),
    "loss/cross_entropy": ("teacher=none",),
    "controls/pseudo_labels": ("data.label_fraction=0.5",),
    **dict.fromkeys(
        ("controls/other_images", "controls/self_supervised"),
        ("data=digits", "task=embedding", "loss=[pkt]"),
    ),
    **dict.fromkeys(("trainer/ddp", "trainer/ddp_sim", "trainer/gpu", "trainer/mps"), ()),
}
"""Choices that do not go with others: the overrides that they need. A machine need not
have every device.
"""


def is_global(choice: str) -> bool:
    """Whether a choice sets other groups."""
    text = (CONF / f"{choice}.yaml").read_text(encoding="utf-8")
    return text.startswith("# @package _global_")


def combine_choices() -> list[tuple[str, ...]]:
    """Every choice in one combination: one of each group and up to four of a list, or
    alone if it sets other groups.
    """
    alone = [choice for choice in CHOICES if choice in ALONE or is_global(choice)]
    rows: dict[int, list[str]] = {}
    for group, choices in groupby(
        sorted(set(CHOICES) - set(alone)), lambda choice: choice.split("/")[0]
    ):
        for number, choice in enumerate(choices):
            rows.setdefault(number // 4 if group in MANY else number, []).append(choice)
    return [*((choice,) for choice in alone), *map(tuple, rows.values())]


def build_overrides(choices: Sequence[str]) -> list[str]:
    """The overrides that select these choices."""
    overrides = [override for choice in choices for override in ALONE.get(choice, ())]
    for group, chosen in groupby(choices, lambda choice: choice.split("/")[0]):
        names = ",".join(choice.partition("/")[2] for choice in chosen)
        overrides.append(f"{group}=[{names}]" if group in MANY else f"{group}={names}")
    return overrides


def content(choice: str) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((CONF / f"{choice}.yaml").read_text(encoding="utf-8"))
    return parsed


def test_all_of_conf_is_covered() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == {*PRIMARY, "hydra_defaults"}
    assert sorted(MANY) == ["callbacks", "controls", "logger", "loss"]
    assert {
        path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*/_*.yaml")
    } == PARTS
    assert {choice.split("/")[0] for choice in FILES} == {
        path.name for path in CONF.iterdir() if path.is_dir()
    }


@pytest.mark.parametrize("primary", PRIMARY)
def test_every_primary_configuration_composes_without_hydras_settings(primary: str) -> None:
    config = compose_config(primary, PRIMARY[primary])
    assert "hydra" not in config
    assert "defaults" not in config


def test_every_choice_is_in_one_combination() -> None:
    assert sorted(choice for row in combine_choices() for choice in row) == sorted(CHOICES)


@pytest.mark.parametrize("choices", combine_choices(), ids=" ".join)
def test_every_choice_composes_and_its_parts_can_be_built(choices: tuple[str, ...]) -> None:
    config = compose_config("distill", build_overrides(choices))
    for choice in choices:
        assert contains(content(choice), read_choice(config, choice)), choice
    for node in config["logger"].values():
        make(node, Backend)
    if choices[0].startswith("trainer/"):  # a machine need not have every device
        assert re.match(r"^$|.*this machine has", refusal(lambda: build_spec(config)))
    else:
        build_spec(config)


@pytest.mark.parametrize("name", list_choices("formats"))
def test_every_format_composes_and_can_be_built(name: str) -> None:
    config = compose_config("export", ["run=a", f"formats=[{name}]"])
    assert contains(content(f"formats/{name}"), config["formats"])
    assert Export(**config).formats[name].name == name


@pytest.mark.parametrize("name", list_choices("comparison"))
def test_every_comparison_of_compressed_students_composes(name: str) -> None:
    assert contains(
        content(f"comparison/{name}"), compose_config("compress", ["run=a", f"comparison={name}"])
    )


def read_choice(config: dict[str, Any], choice: str) -> dict[str, Any]:
    """The part of a configuration that a choice stands for."""
    group = choice.split("/", maxsplit=1)[0]
    return config if is_global(choice) else config[group]


def contains(part: Any, whole: Any) -> bool:
    """Whether all that `part` says stands in `whole`, interpolations aside."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            contains(value, whole.get(key))
            for key, value in part.items()
            if key not in ("defaults", "hydra")
        )
    return part == whole or (isinstance(part, str) and "${" in part)


@pytest.mark.parametrize("name", list_choices("data"))
def test_every_data_may_be_evaluated_on(name: str) -> None:
    data = compose_config("evaluate", ["run=a", "out=b", f"data={name}"])["data"]
    assert data["name"] == name.removesuffix("_few_labels")


def test_data_choices_share_settings_and_each_adds_specific_ones() -> None:
    shared = content("data/_images")
    own = {key for key, value in shared.items() if value == "???"}
    assert own == {"source", "view", "batch_size", "name", "presets"}
    added = {"images": {"judge"}}
    for name in set(list_choices("data")) - {"digits_few_labels"}:
        data = compose_config("distill", [f"data={name}"])["data"]
        assert data.keys() == shared.keys() | added.get(name, set())
        for key in shared.keys() - own - {"root"}:
            assert data[key] == shared[key]


def test_controls_on_labels_share_one_loss() -> None:
    controls = compose_config(
        "distill", ["controls=[labels_only,match_wall_time,other_family,smoothed_labels]"]
    )["controls"]
    shared = content("controls/_labels")["loss"]["cross_entropy"]
    for control in controls.values():
        assert control["loss"]["cross_entropy"].keys() == shared.keys()


@pytest.mark.parametrize("primary", PRIMARY)
def test_hydra_writes_no_files_and_does_not_change_the_folder(primary: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = compose(primary, list(PRIMARY[primary]), return_hydra_config=True).hydra
    assert hydra.output_subdir is None
    assert hydra.job.chdir is False
    assert hydra.run.dir == "."
    assert hydra.job_logging.root is None
    assert hydra.hydra_logging.root is None


@pytest.mark.parametrize("choice", FILES)
def test_every_file_has_a_description_or_is_short(choice: str) -> None:
    text = (CONF / f"{choice}.yaml").read_text(encoding="utf-8")
    assert text.startswith("#") or len(text.splitlines()) <= 3


def test_later_overrides_win_and_all_overrides_win_over_experiments() -> None:
    assert compose_config("distill", ["seed=1", "seed=2"])["seed"] == 2
    assert (
        compose_config("distill", ["experiment=attention", "student.name=resnet8"])["student"][
            "name"
        ]
        == "resnet8"
    )
    assert (
        compose_config("distill", ["experiment=attention"])["student"]["name"]
        == "vit_tiny_patch16_224"
    )
    assert (
        compose_config("distill", ["debug=fdr", "trainer.max_epochs=3"])["trainer"]["max_epochs"]
        == 3
    )


def test_presets_of_the_data_are_the_defaults_of_other_settings() -> None:
    config = compose_config("distill", ["data=fashion_mnist"])
    assert (
        config["teacher"]["name"],
        config["student"]["name"],
        config["trainer"]["max_epochs"],
    ) == ("wrn_16_2", "resnet8", 8)
    assert config["teacher"]["max_epochs"] == 8


def test_a_longer_student_has_the_same_teacher() -> None:
    short, long = (
        compose_config("distill", [f"trainer.max_epochs={epochs}"]) for epochs in (2, 50)
    )
    assert (short["trainer"]["max_epochs"], long["trainer"]["max_epochs"]) == (2, 50)
    assert short["teacher"] == long["teacher"]
    assert compose_config("distill", ["debug=fdr"])["teacher"]["max_epochs"] == 1


def test_the_control_takes_smoothing_and_class_weights_from_the_students_loss() -> None:
    config = compose_config("distill", ["loss.cross_entropy.smoothing=0.1"])
    assert config["controls"]["labels_only"]["loss"]["cross_entropy"]["smoothing"] == 0.1
    assert (
        compose_config("distill", ["loss=[soft_target]"])["controls"]["labels_only"]["loss"][
            "cross_entropy"
        ]["smoothing"]
        == 0.0
    )


def test_arguments_of_a_model_or_an_optimizer_need_no_plus() -> None:
    config = compose_config(
        "distill",
        [
            "teacher.kwargs.drop_rate=0.1",
            "optimizer.kwargs.betas=[0.9,0.95]",
            "teacher.optimizer.kwargs.eps=1e-6",
        ],
    )
    assert config["teacher"]["kwargs"] == {"drop_rate": 0.1}
    whole = compose_config("distill", ["student.kwargs={img_size: 32, a: {b: 1}}"])
    assert whole["student"]["kwargs"] == {"img_size": 32, "a": {"b": 1}}
    assert config["optimizer"]["kwargs"] == {"betas": [0.9, 0.95]}
    assert config["teacher"]["optimizer"]["kwargs"] == {"eps": 1e-6}
    assert normalize_overrides(["loss.a.schedule=warmup", "loss.a.schedule=null"]) == [
        "+scheduler@loss.a.schedule=warmup",
        "loss.a.schedule=null",
    ]
    assert normalize_overrides(["student.kwargs.a.b=1", "seed=1", "+x=1"]) == [
        "++student.kwargs.a.b=1",
        "seed=1",
        "+x=1",
    ]


def test_null_is_null_and_none_is_a_text() -> None:
    assert compose_config("distill", ["out=null"])["out"] is None
    assert compose_config("distill", ["out=None"])["out"] == "None"


def test_known_keys_include_those_of_the_selected_choices() -> None:
    assert {
        "loss.soft_target.temperature",
        "teacher.optimizer.lr",
        "verdict.margin",
        "loss",
    } <= set(list_known_keys("distill"))
    assert "loss.decoupled.beta" not in list_known_keys("distill")
    assert "loss.decoupled.beta" in list_known_keys("distill", ["loss=[decoupled]", "sed=1"])


def refusal(body: Callable[[], Any]) -> str:
    """The message of a `RequestError`; empty without one."""
    try:
        body()
    except RequestError as error:
        return str(error)
    return ""


@settings(max_examples=30)
@given(st.text(alphabet="abcdefgst_.=,[]{}'\"$+~@/:0123456789 -", max_size=20))
def test_no_word_gets_past_as_anything_but_a_configuration_or_a_refusal(word: str) -> None:
    message = refusal(lambda: compose_config("distill", [word]))
    assert len(message.splitlines()) < 2


def test_an_unknown_error_is_reported_in_one_line_with_the_places_to_look_at() -> None:
    assert explain_error(ValueError("first\n second"), "distill", []).startswith(
        "The configuration can't be composed: first second. Check the"
    )


def test_conf_is_found() -> None:
    assert Path(CONF, "distill.yaml").is_file()


@pytest.mark.parametrize("word", ["=", "+=", "++=1"])
def test_a_word_without_a_setting_is_answered_with_what_one_looks_like(word: str) -> None:
    with pytest.raises(RequestError, match=r"names no setting\. Expected <setting>=<value>"):
        compose_config("distill", [word])


def test_a_setting_of_a_group_that_chooses_nothing_names_the_choices() -> None:
    with pytest.raises(RequestError, match=r"data= chooses nothing.* for example data=folder"):
        compose_config("evaluate", ["run=a", "out=b", "data.root=photos"])
