"""A training as a value: its identity, and its transfer to another process."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
import torch

from kd_app.config import InputSpec
from kd_app.digest import hash_value
from kd_app.models.class_map import ClassMap
from kd_app.models.composite import ClassMappedTeacher, EmaTeacher, TeacherEnsemble
from kd_app.models.create import create
from kd_app.models.spec import CompositeTeacher, ImageStats, ModelSpec
from kd_app.run.worker import load_job
from kd_app.specs.model_specs import build_model_spec, parse_model
from kd_app.training.job import CachedOutputs, JobTeacher, Recipe, TrainingJob
from kd_app.training.trainer import TrainerSettings
from tests.builders import DIGITS, GRAY, teacher_folder
from tests.training.small_parts import Net

CROSS_ENTROPY = {
    "_target_": "kd_app.losses.cross_entropy.CrossEntropy",
    "smoothing": 0.0,
    "class_weights": None,
}
SOFT_TARGET = {
    "_target_": "kd_app.losses.soft_target.SoftTarget",
    "temperature": 4.0,
    "standardize": False,
    "weight": 2.0,
}
RECIPE = Recipe(
    loss={"cross_entropy": CROSS_ENTROPY, "soft_target": SOFT_TARGET},
    optimizer={"lr": 0.1},
    scheduler={"warmup": 0.0},
    callbacks={},
    max_epochs=3,
    seed=5,
)
VIEW = {"_target_": "kd_app.data.crop.PadCrop", "padding": 1}

make_net: Callable[..., Net] = lambda: Net(num_classes=10)  # noqa: E731


def model(name: str | None = "resnet8", **changes: Any) -> ModelSpec:
    plain: dict[str, Any] = {
        "pretrained": "auto",
        "checkpoint": None,
        "kwargs": {},
        "image_size": None,
    }
    return ModelSpec(**{"role": "student", "name": name, "factory": None, **plain, **changes})


def data(**changes: Any) -> Any:
    about = {
        "classes": DIGITS,
        "fingerprint": "f1",
        "channels": 1,
        "size": 8,
        "compute_pixel_statistics": lambda: ((0.3,), (0.4,)),
        "describe_identity": lambda *, for_teacher: {"view": VIEW, "batch_size": 32},
    }
    return SimpleNamespace(**{**about, **changes})


def job(**changes: Any) -> TrainingJob:
    return replace(TrainingJob("student", model(), GRAY, RECIPE), **changes)


def teacher(place: Path, **changes: Any) -> JobTeacher:
    request = model(None, role="teacher", checkpoint=teacher_folder(place))
    return replace(JobTeacher(request, create(request, GRAY, 10, seed=0)), **changes)


@pytest.fixture
def trainer() -> TrainerSettings:
    namespace = SimpleNamespace(describe_identity=lambda: {"precision": "32-true", "max_epochs": 9})
    return cast(TrainerSettings, namespace)


def test_the_identity_contains_exactly_what_determines_the_weights(
    trainer: TrainerSettings, tmp_path: Path
) -> None:
    identity = job(teacher=teacher(tmp_path)).describe_identity(data(), trainer)
    assert identity == {
        "model": {
            "name": "resnet8",
            "kwargs": {},
            "pixels": vars(GRAY),
            "classes": list(DIGITS),
        },
        "loss": RECIPE.loss,
        "optimizer": {"lr": 0.1},
        "scheduler": {"warmup": 0.0},
        "callbacks": {},
        "seed": 5,
        "trainer": {"precision": "32-true", "max_epochs": 3},
        "data": {"view": VIEW, "batch_size": 32},
        "teacher": {"name": "resnet8", "pixels": vars(GRAY)},
    }


def test_the_hash_of_an_identity_is_the_one_that_earlier_versions_computed(
    trainer: TrainerSettings,
) -> None:
    identity = job().describe_identity(data(), trainer)
    assert hash_value(identity)[:16] == "ddc0709459cdefd3"


@pytest.mark.parametrize(
    "changes",
    [{"name": "labels_only"}, {"license": "mit"}, {"teacher": None}, {"fresh_views": True}],
)
def test_name_license_and_purpose_do_not_change_the_identity(
    changes: dict[str, Any], trainer: TrainerSettings
) -> None:
    assert job(**changes).describe_identity(data(), trainer) == job().describe_identity(
        data(), trainer
    )


def test_partners_and_the_format_of_cached_outputs_are_in_the_identity(
    trainer: TrainerSettings, tmp_path: Path
) -> None:
    source = teacher(tmp_path)
    paired = job(teacher=source, partners="all").describe_identity(data(), trainer)
    outputs = CachedOutputs("int8", (tmp_path,))
    cached = job(teacher=replace(source, cached=outputs)).describe_identity(data(), trainer)
    assert (paired["partners"], cached["teacher_outputs"]) == ("all", "int8")
    assert not {"partners", "teacher_outputs"} & set(
        job(teacher=source).describe_identity(data(), trainer)
    )


@pytest.mark.parametrize("fresh_views", [False, True])
def test_the_identity_of_fresh_views_is_that_of_the_teachers_data(
    fresh_views: bool, trainer: TrainerSettings
) -> None:
    run_data = data(describe_identity=lambda *, for_teacher: {"for_teacher": for_teacher})
    identity = job(fresh_views=fresh_views).describe_identity(run_data, trainer)
    assert identity["data"] == {"for_teacher": fresh_views}


def test_the_inputs_are_the_hashes_of_data_start_and_teacher(tmp_path: Path) -> None:
    source = teacher(tmp_path)
    alone, distilled = job().hash_inputs(data()), job(teacher=source).hash_inputs(data())
    assert set(alone) == {"data", "start"}
    assert distilled == {**alone, "teacher": source.created.weights.sha256}
    assert job(recipe=replace(RECIPE, seed=6)).hash_inputs(data())["start"] != alone["start"]


def test_another_process_restores_the_same_job(trainer: TrainerSettings, tmp_path: Path) -> None:
    outputs = CachedOutputs("exact", (tmp_path / "b", tmp_path / "c"))
    folders = {"folder": tmp_path, "cached": outputs, "validation_logits": None}
    whole = job(
        teacher=teacher(tmp_path / "t", **folders), partners="view", license="mit", input=GRAY
    )
    again = load_job(json.loads(json.dumps(whole.to_json())), data())
    assert again.to_json() == whole.to_json()
    assert again.describe_identity(data(), trainer) == whole.describe_identity(data(), trainer)
    assert again.hash_inputs(data()) == whole.hash_inputs(data())
    assert again.input == GRAY
    assert again.teacher is not None
    assert again.teacher.cached == outputs
    assert again.teacher.validation_logits is None


def test_a_job_without_a_teacher_has_none_in_another_process() -> None:
    alone = job(fresh_views=True)
    again = load_job(json.loads(json.dumps(alone.to_json())), data())
    assert again == replace(alone, model=again.model)


@pytest.mark.parametrize("name", ["Net", "make_net"])
def test_a_user_provided_factory_is_loaded_by_its_configured_name(
    name: str, tmp_path: Path
) -> None:
    places = {"Net": "tests.training.small_parts.Net", "make_net": f"{__name__}.make_net"}
    known = build_model_spec("student", {"_target_": places[name], "kwargs": {}}, None)
    again = parse_model(json.loads(json.dumps(known.to_json())))
    assert again.name == known.name
    if name == "Net":
        pixels = InputSpec(1, 6, 6, (0.0,), (1.0,))
        models: list[Any] = [create(each, pixels, 3, seed=0).model for each in (known, again)]
        assert all(isinstance(each, Net) for each in models)
        assert torch.equal(models[0].conv.weight, models[1].conv.weight)


def test_a_module_passed_from_python_can_not_be_sent_to_another_process() -> None:
    with pytest.raises(AssertionError, match="has no import path"):
        build_model_spec("student", {}, Net()).to_json()


def test_composite_teachers_are_restored(tmp_path: Path) -> None:
    first = model(None, role="teacher", checkpoint=teacher_folder(tmp_path / "a"))
    second = model(None, role="teacher", checkpoint=teacher_folder(tmp_path / "b", "resnet14"))
    rows = "teacher,class\n" + "".join(f"{digit},{digit}\n" for digit in DIGITS)
    (tmp_path / "map.csv").write_text(rows, encoding="utf-8")
    mapped = ClassMappedTeacher(second, ClassMap(tmp_path / "map.csv"))
    several = TeacherEnsemble({"a": first, "b": mapped}, {"a": 1.0, "b": 2.0}, "confidence")
    hashes = []
    for composite in (several, parse_model(json.loads(json.dumps(several.to_json())))):
        assert isinstance(composite, CompositeTeacher)
        composite.bind_images(ImageStats(1, 8, (0.3,), (0.4,)))
        composite.bind_classes(DIGITS)
        hashes.append(create(composite, GRAY, 10, seed=0).weights.sha256)
    assert hashes[0] == hashes[1]


def test_an_ema_teacher_is_restored_with_its_decay() -> None:
    again = parse_model(json.loads(json.dumps(EmaTeacher(model(), 0.9).to_json())))
    assert isinstance(again, EmaTeacher)
    assert (again.decay, again.student.name) == (0.9, "resnet8")
    assert JobTeacher(again, create(again, GRAY, 10, seed=0)).ema_decay == 0.9


def test_a_recipe_describes_its_loss_without_training() -> None:
    assert RECIPE.needs_teacher
    assert not replace(RECIPE, loss={"cross_entropy": CROSS_ENTROPY}).needs_teacher
    assert RECIPE.loss_reads == {name: frozenset({"logits"}) for name in RECIPE.loss}
    assert RECIPE.loss_weights == {"cross_entropy": 1.0, "soft_target": 2.0}
    assert Recipe(**RECIPE.to_json()) == RECIPE


def test_the_properties_of_a_recipe_build_its_loss_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, builds = replace(RECIPE), Mock(side_effect=Recipe.build_loss)
    monkeypatch.setattr(Recipe, "build_loss", lambda self: builds(self))  # noqa: PLW0108 (a method)
    assert recipe.needs_teacher
    assert recipe.loss_reads
    assert builds.call_count == 1


def test_balanced_classes_have_weights_inverse_to_their_images() -> None:
    node = {**CROSS_ENTROPY, "class_weights": "balanced"}
    recipe = replace(RECIPE, loss={"cross_entropy": node, "soft_target": SOFT_TARGET})
    assert recipe.is_balanced
    assert not RECIPE.is_balanced
    balanced = recipe.balance_classes([30, 10, 0, 40])
    weights = balanced.loss["cross_entropy"]["class_weights"]
    assert weights == pytest.approx([80 / 120, 80 / 40, 80 / 4, 80 / 160])
    assert not balanced.is_balanced
    # every class has the same total weight
    assert 30 * weights[0] == pytest.approx(10 * weights[1])


@pytest.mark.parametrize(
    ("counts", "is_weighted"),
    [([50, 10, 30], True), ([49, 10, 30], False), ([50, 0, 30], False), ([], False)],
)
def test_classes_are_weighted_by_themselves_if_the_largest_is_five_times_the_smallest(
    counts: list[int], is_weighted: bool
) -> None:
    node = {**CROSS_ENTROPY, "class_weights": "auto"}
    recipe = replace(RECIPE, loss={"cross_entropy": node})
    assert recipe.counts_classes
    assert not recipe.is_balanced
    resolved = recipe.balance_classes(counts).loss["cross_entropy"]["class_weights"]
    balanced = replace(recipe, loss={"cross_entropy": {**node, "class_weights": "balanced"}})
    expected = balanced.balance_classes(counts).loss["cross_entropy"]["class_weights"]
    assert resolved == (expected if is_weighted else None)
    balanced.build_loss()
