"""The rule of ``loss=auto``: a pure function of the configuration."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kd_app.config import RequestError
from kd_app.config.compose import choose_all_labels, compose_config
from kd_app.models.weights_source import list_entries
from kd_app.specs.loss_choice import (
    AUTO,
    RULE,
    Kind,
    Situation,
    choose,
    classify_entries,
    describe_situation,
    format_terms,
    list_candidates,
    list_terms,
    read_defaults,
    resolve_loss,
)
from kd_app.specs.spec import build_spec
from tests.training.small_parts import Net

README = Path(__file__).parents[2] / "README.md"
VIT = "student.name=vit_tiny_patch16_224"


def resolve(*overrides: str) -> Any:
    return resolve_loss(compose_config("distill", choose_all_labels(overrides)))


@pytest.mark.parametrize(
    ("situation", "title"),
    [
        (Situation(None, "cnn"), "no teacher"),
        (Situation(None, "vit", has_few_labels=True), "no teacher"),
        (Situation("cnn", "cnn", has_few_labels=True), "few labels, many images"),
        (Situation("cnn", "vit", has_few_labels=True), "few labels, many images"),
        (Situation("cnn", "vit"), "CNN -> ViT"),
        (Situation("cnn", "vit", is_trained_here=False), "CNN -> ViT"),
        (Situation("cnn", "vit", has_features=False), "all others"),
        (Situation("vit", "vit"), "ViT -> ViT"),
        (Situation("vit", "cnn"), "ViT -> CNN or Mixer"),
        (Situation("vit", "other"), "ViT -> CNN or Mixer"),
        (Situation("cnn", "cnn"), "CNN -> CNN"),
        (Situation("cnn", "cnn", is_trained_here=False), "any teacher used as it is"),
        (Situation("cnn", "other"), "all others"),
        (Situation("other", "other"), "all others"),
    ],
)
def test_the_first_row_that_applies_decides(situation: Situation, title: str) -> None:
    assert choose(situation).title == title


def test_each_row_of_the_rule_is_in_the_readme() -> None:
    section = README.read_text(encoding="utf-8").split("## Choose a method")[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("|")][2:]
    plain = [(title.strip(), re.sub(r"\[`(\w+)`\]\(\S+\)", r"\1", cell).strip())
             for title, cell in rows]  # fmt: skip
    assert plain == [(choice.title, format_terms(choice.terms)) for choice in RULE]


def test_every_setting_of_the_rule_is_left_to_the_rule_in_conf() -> None:
    candidates = list_candidates()
    assert set(candidates) == {name for choice in RULE for name in choice.terms}
    for choice in RULE:
        for name, settings in choice.terms.items():
            assert set(settings) <= set(candidates[name]) <= set(read_defaults(name))
    assert {value for node in candidates.values() for value in node.values()} == {AUTO}
    assert AUTO not in list_terms()
    assert set(candidates) < set(list_terms())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("wrn_16_2", "cnn"),
        ("mobilenetv3_small_100", "cnn"),
        ("convnext_atto", "cnn"),
        ("vit_tiny_patch16_224", "vit"),
        ("swin_tiny_patch4_window7_224", "vit"),
        ("mobilevit_xxs", "vit"),
        ("mixer_s32_224", "other"),
    ],
)
def test_networks_are_told_apart_by_their_layers(name: str, kind: Kind) -> None:
    assert classify_entries(list_entries(name, {})) == kind


def test_attention_in_the_head_does_not_make_a_vit() -> None:
    kernel = torch.zeros(4, 4, 3, 3)
    entries = {f"layer{number}.weight": kernel for number in range(3)}
    assert classify_entries({**entries, "head.q.weight": torch.zeros(4, 4)}) == "cnn"
    assert classify_entries({**entries, "block.q.weight": torch.zeros(4, 4)}) == "vit"


@pytest.mark.parametrize(
    ("overrides", "situation"),
    [
        ([], Situation("cnn", "cnn")),
        (["teacher=none"], Situation(None, "cnn")),
        (["teacher.max_epochs=0"], Situation("cnn", "cnn", is_trained_here=False)),
        (["teacher=ema", VIT], Situation("vit", "vit", is_trained_here=False)),
        (["teacher.chain=[resnet14]", VIT], Situation("cnn", "vit", has_features=False)),
        (["teacher.outputs=cached", VIT], Situation("cnn", "vit", has_features=False)),
        (["data.label_fraction=0.1"], Situation("cnn", "cnn", has_few_labels=True)),
        (["data.label_fraction=1.0"], Situation("cnn", "cnn")),
        (["data.unlabeled=more"], Situation("cnn", "cnn", has_few_labels=True)),
        (
            ["teacher.checkpoint=file.onnx"],
            Situation("cnn", "cnn", has_features=False, is_trained_here=False),
        ),
        (["student.name=nonexistent"], Situation("cnn", "other")),
    ],
)
def test_the_situation_follows_from_the_configuration(
    overrides: list[str], situation: Situation
) -> None:
    assert describe_situation(compose_config("distill", choose_all_labels(overrides))) == situation


def test_modules_from_python_are_classified_by_their_layers() -> None:
    config = compose_config("distill", ["data=digits"])
    vit = nn.ModuleDict({"qkv": nn.Linear(4, 12)})
    assert describe_situation(config, teacher=Net(), student=vit) == Situation(
        "other", "vit", is_trained_here=False
    )


@pytest.mark.parametrize(
    "override",
    ["student._target_=this_module.is_not_imported", "student.name='hf-hub:owner/net'"],
)
def test_code_and_hubs_are_not_read(override: str) -> None:
    config = compose_config("distill", choose_all_labels([override]))
    assert describe_situation(config) == Situation("cnn", "other")


@pytest.mark.parametrize("value", [-1, None, True, "x", [1], {"x": 1}])
@pytest.mark.parametrize("key", ["data", "teacher", "student", "controls", "loss"])
def test_a_group_of_the_wrong_kind_is_left_to_the_validation(key: str, value: Any) -> None:
    config = compose_config("distill", [])
    changed = resolve_loss({**config, key: value}).config[key]
    assert changed == value or (key == "controls" and not changed)


@pytest.mark.parametrize("value", [-1, None, True, "x", [1], {"x": 1}, 1e300])
def test_values_of_the_wrong_kind_are_left_to_the_validation(value: Any) -> None:
    for key in ("weight", "temperature"):
        config = compose_config("distill", [])
        config["loss"]["soft_target"][key] = value
        assert resolve_loss(config).config["loss"]["soft_target"][key] == value


def test_the_default_is_the_list_of_its_terms() -> None:
    listed = compose_config("distill", choose_all_labels(["loss=[cross_entropy,soft_target]"]))
    config, sentence = resolve()
    assert config == listed
    assert [list(node) for node in config["loss"].values()] == [
        list(node) for node in listed["loss"].values()
    ]
    assert sentence == (
        "Loss: cross_entropy + soft_target (temperature 4), chosen by loss=auto because teacher and"
        " student are CNNs"
    )
    assert resolve_loss(config) == (config, "")
    assert resolve_loss(listed) == (listed, "")


def test_settings_of_a_chosen_term_are_kept() -> None:
    loss = resolve("loss.soft_target.temperature=4", "loss.cross_entropy.smoothing=0.1", VIT)[0][
        "loss"
    ]
    assert list(loss) == ["cross_entropy", "soft_target", "orthogonal_projection"]
    assert loss["soft_target"]["temperature"] == 4
    assert loss["cross_entropy"]["smoothing"] == 0.1
    assert resolve(VIT)[0]["loss"]["soft_target"]["temperature"] == 1.0
    assert "schedule" in resolve("loss.soft_target.schedule=warmup")[0]["loss"]["soft_target"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["teacher=none", "loss.soft_target.temperature=2"],
            "loss.soft_target is set, but loss=auto trains with cross_entropy here, because there"
            r" is no teacher\. .*'loss=\[cross_entropy,soft_target\]'",
        ),
        (["loss.orthogonal_projection.beta=2"], "teacher and student are CNNs"),
        (["teacher=none", "loss.soft_target.schedule=warmup"], "there is no teacher"),
    ],
)
def test_settings_of_a_term_that_is_not_chosen_are_refused(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        resolve(*overrides)


def test_further_terms_are_added_to_the_chosen_ones() -> None:
    loss = resolve("loss=[auto,dist]")[0]["loss"]
    assert list(loss) == ["cross_entropy", "soft_target", "dist"]
    assert loss["dist"] == read_defaults("dist")


def test_controls_with_the_students_loss_have_the_chosen_terms() -> None:
    config, _ = resolve(
        "controls=[labels_only,shuffled_teacher]", "loss.cross_entropy.smoothing=0.2"
    )
    assert config["controls"]["shuffled_teacher"]["loss"] == config["loss"]
    assert config["controls"]["labels_only"]["loss"]["cross_entropy"]["smoothing"] == 0.2


def test_a_specification_holds_the_chosen_terms_and_the_reason() -> None:
    spec = build_spec(compose_config("distill", ["teacher=none"]))
    assert list(spec.recipe.loss) == list(spec.config["loss"]) == ["cross_entropy"]
    assert spec.loss_choice.endswith("because there is no teacher")
    assert build_spec(spec.config).loss_choice == ""


def test_weights_other_than_one_are_stated() -> None:
    terms = {"cross_entropy": {"weight": 0.1}, "soft_target": {"weight": 0.9, "temperature": 2.5}}
    assert format_terms(terms) == "0.1 x cross_entropy + 0.9 x soft_target (temperature 2.5)"
