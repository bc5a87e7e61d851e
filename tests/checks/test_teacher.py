"""A faulty teacher is refused by name; a sound one has no findings."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from kd_app.checks.context import CheckContext
from kd_app.checks.teacher import (
    check_chance_level,
    check_determinism,
    check_published_accuracy,
    check_random_head,
)
from kd_app.metrics.record import Predictions
from tests.builders import teacher_folder
from tests.checks.planted import Changed, Stubborn, build_context, fit_teacher, list_names
from tests.training.small_parts import Net, build_seeded


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> CheckContext:
    folder = tmp_path_factory.mktemp("digits")
    return build_context(folder, teacher=fit_teacher(build_context(folder)))


def net(**modules: nn.Module) -> nn.Module:
    """A model for the digits with some modules replaced."""
    model: nn.Module = build_seeded(lambda: Net(num_classes=10))
    for name, module in modules.items():
        setattr(model, name, module)
    return model


def test_a_sound_teacher_has_no_findings(digits: CheckContext) -> None:
    for check in (
        check_random_head,
        check_determinism,
        check_chance_level,
        check_published_accuracy,
    ):
        assert not list_names(check(digits))
    assert digits.hits.mean() > 0.85


def test_a_teacher_at_chance_is_refused(tmp_path: Path) -> None:
    (finding,) = check_chance_level(build_context(tmp_path, teacher=net()))
    assert (finding.name, finding.severity) == ("teacher-at-chance", "refusal")
    assert "and chance is" in finding.text


def test_always_the_same_answer_is_chance_however_frequent_that_class_is(
    digits: CheckContext, tmp_path: Path
) -> None:
    assert digits.teacher is not None
    same = Changed(
        digits.teacher.loaded.model,
        after=lambda logits: F.one_hot(torch.full((len(logits),), 3), 10).float(),
    )
    assert list_names(check_chance_level(build_context(tmp_path, teacher=same))) == [
        "teacher-at-chance"
    ]


def test_a_head_of_other_classes_that_nothing_would_train_is_refused(tmp_path: Path) -> None:
    save_file(
        timm.create_model("resnet8", num_classes=7, in_chans=1).state_dict(),
        tmp_path / "seven.safetensors",
    )
    seven = (f"teacher.checkpoint={tmp_path / 'seven.safetensors'}", "teacher.name=resnet8")
    for overrides in (
        (*seven, "teacher.max_epochs=0"),
        ("teacher.name=resnet8", "teacher.max_epochs=0"),
    ):
        context = build_context(tmp_path, *overrides)
        (finding,) = check_random_head(context)
        assert (finding.name, finding.severity) == ("random-head", "refusal")
        assert context.teacher is None
    unread = build_context(tmp_path, *seven, "teacher.max_epochs=0", "loss=[cross_entropy,sp]")
    assert not list_names(check_random_head(unread))
    assert unread.is_unmeasured
    assert not list_names(check_chance_level(unread))
    (finding,) = check_random_head(build_context(tmp_path, *seven))
    assert (finding.name, finding.severity) == ("teacher-not-there", "note")


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            {"drop": Changed(nn.Identity(), after=lambda x: F.dropout(x, 0.2, training=True))},
            "differ between two passes",
        ),
        ({"norm": Stubborn(8)}, "its state changes during inference"),
        (
            {"norm": nn.BatchNorm2d(8, track_running_stats=False)},
            "depend on the rest of the batch",
        ),
    ],
    ids=["dropout", "moving BatchNorm", "BatchNorm of the batch"],
)
def test_a_teacher_that_is_not_deterministic_is_refused(
    modules: dict[str, nn.Module], message: str, tmp_path: Path
) -> None:
    (finding,) = check_determinism(build_context(tmp_path, teacher=net(**modules)))
    assert (finding.name, finding.severity) == ("teacher-not-deterministic", "refusal")
    assert message in finding.text


def test_dropout_that_respects_eval_mode_is_no_fault(
    tmp_path: Path,
) -> None:
    assert not list_names(
        check_determinism(build_context(tmp_path, teacher=net(drop=nn.Dropout(0.5))))
    )
    assert not list_names(check_determinism(build_context(tmp_path, "teacher.name=resnet8")))


def test_a_teacher_worse_than_its_model_card_is_a_warning(tmp_path: Path) -> None:
    folder = teacher_folder(tmp_path / "card")
    (folder / "README.md").write_text(
        "---\nlicense: mit\nmodel-index:\n- name: x\n  results:\n  - metrics:\n    - type:"
        " accuracy\n      value: 97.5\n---\n# x\n"
    )
    (finding,) = check_published_accuracy(build_context(tmp_path, f"teacher.checkpoint={folder}"))
    assert (finding.name, finding.severity) == ("teacher-below-published", "warning")
    assert "card/README.md reports 97.5%" in finding.text
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert not list_names(
        check_published_accuracy(build_context(tmp_path, f"teacher.checkpoint={folder}"))
    )


def judge(context: CheckContext, predicted: list[int], target: list[int]) -> list[tuple[str, str]]:
    logits = np.eye(10, dtype=np.float32)[predicted]
    context.judged = Predictions(
        logits=logits, target=np.array(target), index=np.arange(len(target))
    )
    return [(finding.name, finding.severity) for finding in check_chance_level(context)]


def test_few_images_that_are_all_right_are_no_reason_to_refuse(digits: CheckContext) -> None:
    context = copy.copy(digits)
    assert judge(context, [0, 1, 0, 1], [0, 1, 0, 1]) == [("teacher-at-chance", "warning")]
    assert judge(context, [0, 1] * 10, [0, 1] * 10) == []
    assert judge(context, [0] * 20, [0, 1] * 10) == [("teacher-at-chance", "refusal")]


def test_a_teacher_below_the_most_frequent_class_is_weak(digits: CheckContext) -> None:
    context = copy.copy(digits)
    target = [0] * 70 + [1] * 15 + [2] * 15
    predicted = [0] * 40 + [1] * 20 + [2] * 10 + [1] * 15 + [2] * 15
    assert judge(context, predicted, target) == [("teacher-weak", "warning")]


def test_a_teacher_at_chance_is_only_a_warning_if_trained_here_or_if_no_term_reads_its_classes(
    digits: CheckContext, tmp_path: Path
) -> None:
    assert digits.teacher is not None
    context = copy.copy(digits)
    context.teacher = replace(digits.teacher, folder=tmp_path)
    assert judge(context, [0] * 20, [0, 1] * 10) == [("teacher-at-chance", "warning")]
    (finding,) = check_chance_level(context)
    assert "raise teacher.max_epochs, or change teacher.optimizer.lr" in finding.text
    assert "head may be random" not in finding.text
    words = ("loss=[cross_entropy,embedding_mse]",)
    features = build_context(tmp_path, *words, teacher=net())
    assert [finding.severity for finding in check_chance_level(features)] == ["warning"]
