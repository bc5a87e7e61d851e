"""A teacher that is none is refused by name, a sound one is left in peace."""

from pathlib import Path

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
from tests.builders import teacher_folder
from tests.checks.planted import Changed, Stubborn, fitted, names, subject
from tests.training.small_parts import Net, seeded


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> CheckContext:
    folder = tmp_path_factory.mktemp("digits")
    return subject(folder, teacher=fitted(subject(folder)))


def net(**changed: nn.Module) -> nn.Module:
    """A net for the digits with a module in another one's place."""
    made: nn.Module = seeded(lambda: Net(num_classes=10))
    for name, module in changed.items():
        setattr(made, name, module)
    return made


def test_a_sound_teacher_is_left_in_peace(digits: CheckContext) -> None:
    for check in (
        check_random_head,
        check_determinism,
        check_chance_level,
        check_published_accuracy,
    ):
        assert not names(check(digits))
    assert digits.hits.mean() > 0.85


def test_a_teacher_at_chance_is_refused(tmp_path: Path) -> None:
    (found,) = check_chance_level(subject(tmp_path, teacher=net()))
    assert (found.name, found.weight) == ("teacher-at-chance", "refusal")
    assert "and chance has" in found.text


def test_always_the_same_answer_is_chance_however_frequent_that_class_is(
    digits: CheckContext, tmp_path: Path
) -> None:
    assert digits.teacher is not None
    same = Changed(
        digits.teacher.loaded.model,
        after=lambda logits: F.one_hot(torch.full((len(logits),), 3), 10).float(),
    )
    assert names(check_chance_level(subject(tmp_path, teacher=same))) == ["teacher-at-chance"]


def test_a_head_of_other_classes_that_nothing_would_train_is_refused(tmp_path: Path) -> None:
    save_file(
        timm.create_model("resnet8", num_classes=7, in_chans=1).state_dict(),
        tmp_path / "seven.safetensors",
    )
    seven = (f"teacher.checkpoint={tmp_path / 'seven.safetensors'}", "teacher.name=resnet8")
    for words in (
        (*seven, "teacher.max_epochs=0"),
        ("teacher.name=resnet8", "teacher.max_epochs=0"),
    ):
        looked_at = subject(tmp_path, *words)
        (found,) = check_random_head(looked_at)
        assert (found.name, found.weight) == ("random-head", "refusal")
        assert looked_at.teacher is None
    unread = subject(tmp_path, *seven, "teacher.max_epochs=0", "loss=[cross_entropy,sp]")
    assert not names(check_random_head(unread))
    assert unread.unmeasured
    assert not names(check_chance_level(unread))
    (told,) = check_random_head(subject(tmp_path, *seven))
    assert (told.name, told.weight) == ("teacher-not-there", "note")


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        (
            {"drop": Changed(nn.Identity(), after=lambda x: F.dropout(x, 0.2, training=True))},
            "differently the second time",
        ),
        ({"norm": Stubborn(8)}, "its state changes"),
        (
            {"norm": nn.BatchNorm2d(8, track_running_stats=False)},
            "depends on the others of the batch",
        ),
    ],
    ids=["dropout", "moving BatchNorm", "BatchNorm of the batch"],
)
def test_a_teacher_that_is_not_deterministic_is_refused(
    planted: dict[str, nn.Module], said: str, tmp_path: Path
) -> None:
    (found,) = check_determinism(subject(tmp_path, teacher=net(**planted)))
    assert (found.name, found.weight) == ("teacher-not-deterministic", "refusal")
    assert said in found.text


def test_dropout_that_hears_of_eval_mode_is_no_fault_and_one_to_be_trained_is_looked_at_too(
    tmp_path: Path,
) -> None:
    assert not names(check_determinism(subject(tmp_path, teacher=net(drop=nn.Dropout(0.5)))))
    assert not names(check_determinism(subject(tmp_path, "teacher.name=resnet8")))


def test_a_teacher_worse_than_its_card_says_is_warned_of(tmp_path: Path) -> None:
    folder = teacher_folder(tmp_path / "told")
    (folder / "README.md").write_text(
        "---\nlicense: mit\nmodel-index:\n- name: x\n  results:\n  - metrics:\n    - type:"
        " accuracy\n      value: 97.5\n---\n# x\n"
    )
    (found,) = check_published_accuracy(subject(tmp_path, f"teacher.checkpoint={folder}"))
    assert (found.name, found.weight) == ("teacher-below-published", "warning")
    assert "told/README.md says 97.5%" in found.text
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert not names(check_published_accuracy(subject(tmp_path, f"teacher.checkpoint={folder}")))
