"""Loss terms, data and teachers that do not go together."""

import pytest

from kd_app.config import RequestError
from kd_app.config.compose import choose_all_labels, compose_config
from kd_app.data.external import ExternalDataModule
from kd_app.data.partners import PartnerKind
from kd_app.losses.distillation_loss import DistillationLoss
from kd_app.models.class_names import ModelClasses
from kd_app.models.weights_source import WeightsRecord
from kd_app.specs.schema import TeacherOutputs
from kd_app.specs.spec import RunSpec, build_spec
from kd_app.specs.validation import (
    check_data_use,
    check_scopes,
    check_teacher,
    check_teacher_logits,
)
from tests.training.small_parts import OwnData

LIVE = TeacherOutputs.read({"outputs": "live"})
CACHED = TeacherOutputs.read({"outputs": "cached"})


SHUFFLED: dict[str, PartnerKind | None] = {"shuffled_teacher": "class", "labels_only": None}


def spec(*overrides: str) -> RunSpec:
    return build_spec(compose_config("distill", choose_all_labels(["controls=[]", *overrides])))


def loss(*terms: str) -> DistillationLoss:
    return spec(f"loss=[{','.join(terms)}]").recipe.build_loss()


def test_cached_outputs_hold_logits_for_data_with_views() -> None:
    data = spec("data.views=2").data
    check_data_use(data, CACHED, {"student": loss("cross_entropy", "soft_target")}, {})
    with pytest.raises(
        RequestError, match="train the student: its loss term feature_hint also reads features"
    ):
        check_data_use(data, CACHED, {"student": loss("feature_hint")}, {})
    with pytest.raises(RequestError, match=r"teacher.outputs=cached needs"):
        check_data_use(spec().data, CACHED, {}, {})


def test_a_shuffled_teacher_needs_data_that_kd_app_reads() -> None:
    check_data_use(spec().data, LIVE, {}, SHUFFLED)
    with pytest.raises(RequestError, match="The control shuffled_teacher needs"):
        check_data_use(ExternalDataModule(OwnData()), LIVE, {}, SHUFFLED)


@pytest.mark.parametrize("kind", ["all", "view"])
def test_other_images_and_second_views_need_data_that_kd_app_reads(kind: PartnerKind) -> None:
    few = spec("data.label_fraction=0.1").data
    check_data_use(few, LIVE, {}, {"mine": kind})
    with pytest.raises(RequestError, match="The control mine needs images that kd_app decodes"):
        check_data_use(ExternalDataModule(OwnData()), LIVE, {}, {"mine": kind})


def test_a_control_labels_images_without_a_label_and_without_the_teacher() -> None:
    few, control = spec("data.label_fraction=0.1").data, ["pseudo_labels"]
    check_data_use(few, LIVE, {}, {}, control)
    for data, reason in (
        (spec().data, "but every training image has a label. Set data.label_fraction, for example"),
        (ExternalDataModule(OwnData()), "the data module OwnData determines the labels"),
    ):
        with pytest.raises(RequestError, match=reason):
            check_data_use(data, LIVE, {}, {}, control)
    with pytest.raises(RequestError, match="its loss reads the teacher"):
        check_data_use(few, LIVE, {"pseudo_labels": loss("soft_target")}, {}, control)


def test_a_term_that_needs_a_teacher_is_refused_without_one() -> None:
    check_teacher(loss("soft_target"), spec().teacher, chained=False)
    with pytest.raises(RequestError, match="soft_target needs a teacher and there is none"):
        check_teacher(loss("soft_target"), None, chained=False)


def test_a_term_reads_one_member_of_an_ensemble_only() -> None:
    several = (
        "teacher=several",
        "teacher.members.a.name=resnet8",
        "teacher.members.b.name=resnet14",
    )
    run = spec(*several, "loss.soft_target.teacher=a")
    terms = run.recipe.build_loss()
    check_teacher(terms, run.teacher, chained=False)
    for teacher, chained in ((spec().teacher, False), (run.teacher, True)):
        with pytest.raises(RequestError, match="selects one member of an ensemble"):
            check_teacher(terms, teacher, chained=chained)
    with pytest.raises(RequestError, match="Did you mean 'a'"):
        spec(*several, "loss.soft_target.teacher=aa")


def test_logits_of_a_teacher_with_other_classes_are_not_read() -> None:
    teacher = spec("teacher.name=resnet50.a1_in1k").teacher
    assert teacher is not None
    check_teacher_logits([loss("cross_entropy", "embedding_mse")], teacher, 3)
    teacher.bind_classes(("a", "b", "c"))
    terms = [loss("dist", "embedding_mse")]
    with pytest.raises(RequestError, match=r"has 1000 classes.*the loss term dist reads.*map the"):
        check_teacher_logits(terms, teacher, 3)
    for count in (None, 0):  # a file of weights without a classifier, and a model folder
        teacher.record = WeightsRecord(ModelClasses(count))
        teacher.bind_classes(("a", "b", "c"))
        with pytest.raises(RequestError, match="has no classifier") as raised:
            check_teacher_logits(terms, teacher, 3)
        assert "teacher.classes" not in str(raised.value)
        assert "train a classifier with teacher.max_epochs=1" in str(raised.value)


def check(*overrides: str, num_classes: int = 2, batch_size: int = 8) -> list[str]:
    recipe = spec(*overrides).recipe
    return check_scopes(
        [recipe.build_loss()], num_classes=num_classes, batch_size=batch_size, world_size=1
    )


def test_terms_on_logits_are_built_with_the_number_of_classes() -> None:
    weights = "loss.cross_entropy.class_weights=[1,2,3]"
    assert not check(weights, num_classes=3)
    with pytest.raises(RequestError, match="class_weights has 3 entries for 7 classes"):
        check(weights, num_classes=7)


def test_a_void_term_is_refused_and_a_void_part_is_reported() -> None:
    with pytest.raises(RequestError, match=r"soft_target teaches nothing with 2 classes: two stan"):
        check("loss.soft_target.standardize=true")
    assert not check("loss.soft_target.standardize=true", num_classes=3)
    (warning,) = check("loss=[cross_entropy,dist]")
    assert "dist is used without beta, which teaches nothing with 2 classes" in warning
    with pytest.raises(RequestError, match=r"rkd teaches nothing with batches of 2 image\(s\)"):
        check("loss=[cross_entropy,rkd]", batch_size=2)
    with pytest.raises(RequestError, match="All parts of the loss term decoupled have weight 0"):
        check("loss=[decoupled]", "loss.decoupled.alpha=0", "loss.decoupled.beta=0")
