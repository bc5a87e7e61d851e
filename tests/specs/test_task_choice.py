"""The task of a run, and the settings that only one task reads."""

from pathlib import Path
from typing import Any

import pytest

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.run.folder import build_run_name
from kd_app.specs.task_choice import EmbeddingSettings, require_classifier, resolve_task
from kd_app.tasks.classification import CLASSIFICATION
from kd_app.tasks.embedding import Embedding
from tests.reporting.run_folders import build_results

IMAGES = ("data=images", "data.root=photos")


def _resolve(*overrides: str) -> tuple[Any, dict[str, Any]]:
    return resolve_task(compose_config("distill", list(overrides)))


def test_a_run_with_classes_is_named_as_before_there_were_tasks() -> None:
    task, config = _resolve()
    assert task == CLASSIFICATION
    assert not {"task", "neighbors"} & set(config)
    assert "embedding" not in config["teacher"]
    assert "keep_projector" not in config["student"]
    assert build_run_name(config) == build_run_name(resolve_task(config).config)


@pytest.mark.parametrize("overrides", [IMAGES, ("data=digits", "task=embedding")])
def test_images_without_classes_are_for_an_embedding(overrides: tuple[str, ...]) -> None:
    task, config = _resolve(*overrides, "neighbors.k=4")
    assert task == Embedding(k=4)
    assert config["task"] == "embedding"
    assert config["controls"] == {}
    assert resolve_task(config).config == config


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["teacher.embedding=both"], "teacher.embedding"),
        (["student.keep_projector=true"], "student.keep_projector"),
        (["neighbors.k=5"], "neighbors.k"),
    ],
)
def test_settings_without_effect_are_refused(overrides: list[str], key: str) -> None:
    with pytest.raises(RequestError, match=f"{key}=.* has no effect"):
        _resolve(*overrides)


def test_a_wrong_choice_of_the_output_is_refused_before_any_work() -> None:
    with pytest.raises(RequestError, match="keep_projector='maybe' does not fit"):
        _resolve(*IMAGES, "student.keep_projector=maybe")


def test_images_without_classes_can_not_be_classified() -> None:
    with pytest.raises(RequestError, match=r"data=images has none.*data=folder"):
        _resolve(*IMAGES, "task=classification")


@pytest.mark.parametrize(
    "override",
    [
        "verdict.metric=worst_class",
        "verdict.margin=0.2",
        "teacher.classes=map.csv",
        "teacher.chain=[resnet14]",
        "teacher=ema",
        "data.label_fraction=0.1",
        "data.refit=true",
        "robustness=standard",
    ],
)
def test_settings_for_classes_are_refused_without_labels(override: str) -> None:
    key = override.partition("=")[0].replace("teacher=ema", "teacher")
    with pytest.raises(RequestError, match=f"{key}.* is set, and task=embedding"):
        _resolve(*IMAGES, override)


@pytest.mark.parametrize("value", ["neighbors.k=0", "neighbors.margin=1.5", "task=masks"])
def test_values_out_of_range_are_refused(value: str) -> None:
    with pytest.raises(RequestError):
        _resolve(*IMAGES, value)


def test_an_unknown_embedding_is_refused() -> None:
    with pytest.raises(RequestError, match="embedding"):
        EmbeddingSettings.read(compose_config("distill", [*IMAGES, "teacher.embedding=all"]))


@pytest.mark.parametrize(
    "override",
    [
        "+teacher.members={a: {checkpoint: a, embedding: both}, b: {checkpoint: b}}",
        "+teacher.members={a: {checkpoint: a, embedding: pooled}, b: {checkpoint: b}}",
    ],
)
def test_an_embedding_of_a_member_has_no_effect_on_classes(override: str) -> None:
    with pytest.raises(RequestError, match=r"teacher\.members\.a\.embedding=.* has no effect"):
        _resolve(override)
    assert _resolve(*IMAGES, override)[0] == Embedding(k=10)


def test_a_run_that_learned_an_embedding_is_refused_where_classes_are_needed() -> None:
    results = build_results()
    require_classifier(Path("run"), results, why="this compares classes")
    results = results.model_copy(update={"embedding": {"ships": "projector"}})
    with pytest.raises(RequestError, match=r"outputs an embedding.*this compares classes"):
        require_classifier(Path("run"), results, why="this compares classes")
