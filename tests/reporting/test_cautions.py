"""A model at chance is reported before anything else."""

from typing import Any

import pytest

from kd_app.reporting.cautions import describe_cautions
from kd_app.reporting.metrics import Split
from kd_app.reporting.results import Data, Results
from kd_app.reporting.sentences import write_verdict
from kd_app.reporting.tables import build_summary
from tests.reporting.run_folders import build_results
from tests.reporting.test_tables import render_flat

DATA = Data(classes=["common", "rare"], sizes={}, fingerprint="")


def build_split(support: list[int], **accuracy: list[float]) -> Split:
    content = build_results().model_dump()["test"]
    content["num_images"] = sum(support)
    content["per_class"] = {"support": support, "accuracy": accuracy, "f1": {}}
    return Split.model_validate(content)


@pytest.mark.parametrize(
    ("student", "is_cautioned"),
    [
        ([1.0, 0.0], True),  # always the largest class
        ([0.98, 0.25], True),  # 91 % against 89 %
        ([0.99, 0.8], False),
        ([0.0, 1.0], True),  # always the other class
    ],
)
def test_a_student_not_above_the_largest_class_is_cautioned_against(
    student: list[float], is_cautioned: bool
) -> None:
    split = build_split([320, 40], teacher=[1.0, 1.0], student=student)
    cautions = describe_cautions(DATA, split, "test")
    assert len(cautions) == is_cautioned
    if is_cautioned:
        assert cautions[0].startswith(
            "Caution: the student is not shown to be better than always answering the largest"
            " class, 'common': "
        )


def test_equal_classes_make_chance_the_largest_class() -> None:
    split = build_split([25, 24], teacher=[0.6, 0.5], student=[0.96, 0.96])
    (caution,) = describe_cautions(DATA, split, "validation")
    assert caution.startswith("Caution: the teacher is not shown")
    assert "55.10 % of 49 validation images right, 51.02 % for that answer" in caution


def test_cautions_come_before_every_other_sentence() -> None:
    run = build_results(cautions=["Caution: at chance."])
    text = render_flat(build_summary(run))
    assert text.index("Caution: at chance.") < text.index("Distilled minus")


def describe(**changes: Any) -> str:
    verdict = Results.model_validate(build_results().model_dump()).verdict
    assert verdict is not None
    return write_verdict(verdict.model_copy(update=changes))


def test_kept_next_to_a_weaker_teacher_says_so() -> None:
    text = "The teacher is the weaker of the two, so 'kept' says little about the student."
    assert text in describe(outcome="kept", difference=0.1, low=0.02, high=0.2)
    assert text in describe(outcome="kept", difference=0.1, low=-0.005, high=0.2)
    assert text not in describe(outcome="kept", difference=0.0, low=-0.005, high=0.005)
    assert text not in describe(outcome="not shown", difference=0.1, low=-0.02, high=0.2)


def test_the_verdict_names_the_smallest_margin_that_the_images_could_show() -> None:
    assert (
        "The smallest margin that these images could show, if both were equally good, is 5.93"
        " points." in describe(smallest_margin=0.0593)
    )
