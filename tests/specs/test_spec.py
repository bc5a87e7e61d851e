"""The specification of a run: its parts, and contradictions between them."""

import pytest

from kd_app.config import RequestError
from kd_app.config.compose import choose_all_labels, compose_config
from kd_app.models.composite import EmaTeacher
from kd_app.specs.spec import ExternalParts, RunSpec, build_spec
from tests.training.small_parts import Net


def spec(*overrides: str, external: ExternalParts | None = None) -> RunSpec:
    return build_spec(compose_config("distill", choose_all_labels(overrides)), external)


def test_a_run_has_the_configured_models_recipes_and_controls() -> None:
    run = spec("teacher.name=wrn_16_2", "student.name=resnet8", "seed=3", "trainer.max_epochs=7")
    assert run.teacher is not None
    assert run.teacher_recipe is not None
    assert (run.teacher.name, run.student.name) == ("wrn_16_2", "resnet8")
    assert (run.recipe.seed, run.recipe.max_epochs) == (3, 7)
    assert list(run.controls) == ["labels_only"]
    assert not run.controls["labels_only"].needs_teacher
    assert run.budget is None
    assert set(run.to_json()) == {"data", "trainer"}


def test_without_a_teacher_there_are_no_controls() -> None:
    run = spec("teacher=none", "loss=[cross_entropy]", "controls=[labels_only]")
    assert (run.teacher, run.teacher_recipe, run.controls) == (None, None, {})


def test_assistants_have_seeds_of_their_own() -> None:
    run = spec("teacher.chain=[resnet14,resnet8]", "teacher.seed=40")
    assert [(each.spec.name, each.seed) for each in run.assistants] == [
        ("resnet14", 41),
        ("resnet8", 42),
    ]


def test_the_moving_average_of_the_student_is_a_teacher_without_a_recipe() -> None:
    run = spec("teacher=ema", "teacher.decay=0.9", "controls=[]")
    assert isinstance(run.teacher, EmaTeacher)
    assert (run.teacher.decay, run.teacher_recipe) == (0.9, None)


def test_the_license_of_the_data_can_be_configured() -> None:
    assert spec("data.license=null", "controls=[]").licenses.data


def test_a_module_from_python_is_the_student() -> None:
    run = spec(external=ExternalParts(student=Net()))
    assert run.student.factory is not None
    assert run.external.student is not None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss=[cross_entropy]"], "no loss term reads it"),
        (
            ["teacher=none", "loss=[soft_target]"],
            "The loss term soft_target needs a teacher and there is none",
        ),
        (
            ["teacher=none", "+teacher.chain=[resnet8]", "loss=[cross_entropy]"],
            "teacher.chain needs",
        ),
        (["teacher=ema", "teacher.name=resnet8"], "has no effect with teacher=ema"),
        (
            ["teacher=several", "teacher.members.a.name=resnet8", "teacher.name=resnet8"],
            "has no effect with teacher=several",
        ),
        (["loss.soft_target.temperature=0"], "temperature=0"),
        (["optimizer.lr=-1"], "lr=-1"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        spec(*overrides)


def test_objects_from_python_can_not_be_trained_by_several_processes() -> None:
    with pytest.raises(RequestError, match=r"can't be sent to other processes"):
        spec("trainer=ddp_sim", external=ExternalParts(student=Net()))
    with pytest.raises(RequestError, match="teacher=ema supports one process"):
        spec("trainer=ddp_sim", "teacher=ema", "controls=[]")
