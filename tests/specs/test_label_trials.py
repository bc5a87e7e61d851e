"""Which trainings on labels follow a run without labels."""

from pathlib import Path
from typing import Any

import pytest

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.specs.label_trials import check_label_trials, list_label_trials
from kd_app.specs.spec import build_spec
from kd_app.tasks.classification import CLASSIFICATION

OUT = Path("runs/x")


def _compose(*overrides: str) -> dict[str, Any]:
    return compose_config(
        "distill",
        [
            "experiment=label_free_then_labels",
            "data=folder",
            "data.root=photos",
            "data.views=4",
            "teacher.outputs=cached",
            "student.name=resnet8",
            "student.keep_projector=true",
            "neighbors.k=4",
            *overrides,
        ],
    )


def test_each_start_is_trained_on_each_share_of_the_labels() -> None:
    trials = list_label_trials(_compose(), OUT)
    shares = [0.01, 0.1, 1.0]
    assert [(each.start, each.fraction) for each in trials] == [
        *(("label_free", share) for share in shares),
        *(("random", share) for share in shares),
    ], "a student that starts from random weights has no own ones"
    check_label_trials(trials)
    first, last = trials[0].config, trials[-1].config
    assert first["student"]["checkpoint"] == "runs/x"
    assert first["data"]["label_fraction"] == 0.01
    assert last["data"]["label_fraction"] is None
    assert [each.config["out"] for each in trials][2:4] == [
        "runs/x/labels/label_free-1",
        "runs/x/labels/random-0.01",
    ]
    spec = build_spec(last)
    assert (spec.task, spec.teacher, list(spec.recipe.loss)) == (
        CLASSIFICATION,
        None,
        ["cross_entropy"],
    )
    assert not spec.student.origin.has_weights


def test_a_pretrained_student_is_also_trained_from_its_own_weights() -> None:
    config = _compose("student.name=resnet10t.c3_in1k", "label_trials.fractions=[0.5]")
    starts = {each.start: each.config["student"] for each in list_label_trials(config, OUT)}
    assert list(starts) == ["label_free", "own", "random"]
    assert starts["own"]["name"] == "resnet10t.c3_in1k"
    assert (starts["random"]["name"], starts["random"]["pretrained"]) == ("resnet10t", False)


def test_the_distilled_start_is_trained_at_a_rate_between_those_of_the_others() -> None:
    config = _compose("student.name=resnet10t.c3_in1k", "label_trials.fractions=[1]")
    rates = {
        each.start: each.config["optimizer"]["finetune_lr"]
        for each in list_label_trials(config, OUT)
    }
    assert rates == {"own": 0.001, "random": 0.001, "label_free": pytest.approx(0.00316, abs=1e-5)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=classification", "trains on labels"),
        ("data=images", "no classes to learn"),
        ("label_trials.fractions=[0]", "label_trials: fractions"),
    ],
)
def test_trials_that_can_not_follow_are_refused(override: str, message: str) -> None:
    config = _compose("data.root=photos", override)
    with pytest.raises(RequestError, match=message):
        list_label_trials(config, OUT)
