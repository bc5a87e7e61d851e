"""OFA's branches on tokens: the class token or the average is classified."""

import pytest
import timm
import torch

from kd_app.config import RequestError
from kd_app.losses.base import LossTerm
from kd_app.losses.ofa import PatchMerging
from kd_app.models.outputs import Outputs, Tokens
from kd_app.models.taps import Taps
from tests.losses.samples import batch, labels, logits, make, maps, normal

TARGET = batch(torch.tensor([0, 1, 2]))


def _vit(side: int = 4, images: int = 3) -> Outputs:
    stages = [
        Tokens(normal(images, side * side, 16, seed=k), normal(images, 1, 16, seed=9 + k))
        for k in range(4)
    ]
    grids = [stage.patch.transpose(1, 2).unflatten(2, (side, side)) for stage in stages]
    return Outputs(logits=normal(images, 6, seed=20), features=grids, tokens=stages)


def _build(student: Outputs, *, class_token: bool) -> LossTerm:
    term: LossTerm = make("ofa", class_token=class_token)
    assert student.logits is not None
    term.build(student, logits(student.logits))
    return term.double()


@pytest.mark.parametrize("class_token", [False, True])
def test_the_class_token_counts_only_if_configured(class_token: bool) -> None:
    student, teacher = _vit(), logits(normal(3, 6, seed=21))
    term = _build(student, class_token=class_token)
    before = term(student, teacher, TARGET).item()
    student.tokens = [Tokens(stage.patch, stage.prefix + 1) for stage in student.tokens]
    assert (term(student, teacher, TARGET).item() != before) is class_token


def test_the_class_token_is_used_with_merged_patches() -> None:
    student = _vit(side=8)
    term = _build(student, class_token=True)
    assert any(isinstance(module, PatchMerging) for module in term.modules())
    assert term(student, logits(normal(3, 6, seed=21)), TARGET).isfinite()


@pytest.mark.parametrize(
    "student",
    [maps(normal(3, 8, 4, 4, seed=1), normal(3, 16, 2, 2, seed=2)), _vit()],
    ids=["a CNN", "tokens without one"],
)
def test_a_student_without_a_class_token_is_refused_with_alternatives(student: Outputs) -> None:
    student.logits = normal(3, 6, seed=20)
    student.tokens = [Tokens(stage.patch, stage.patch[:, :0]) for stage in student.tokens]
    with pytest.raises(RequestError, match=r"(?s)class_token=false.*soft_target, dist or nkd"):
        _build(student, class_token=True)


def test_a_vit_of_timm_learns_through_its_class_token() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=4,
        depth=4,
        embed_dim=32,
        num_heads=2,
        num_classes=6,
    )
    term = make("ofa", class_token=True)
    images = normal(3, 3, 16, 16, seed=1, dtype=torch.float32)
    student = Taps(model, term.reads)(images)
    teacher = logits(normal(3, 6, seed=21, dtype=torch.float32))
    term.build(student, teacher)
    term(student, teacher, labels(3)).backward()
    learned = model.get_parameter("cls_token").grad
    assert learned is not None
    assert learned.abs().sum() > 0
