"""Every method through the real command, two batches each: one sweep for those that a
pair of CNNs can use, one for those that read tokens.
"""

from pathlib import Path

import pytest

from tests.builders import results
from tests.commands.call import TINY, succeed
from tests.losses.samples import TERMS, class_of

OF_TOKENS = [
    "attention_relation",
    "hard_token",
    "soft_token",
    "token_patch_feature",
    "vit_features",
]
OF_MAPS = [name for name in TERMS if class_of(name).needs_teacher and name not in OF_TOKENS]
VIT = ("img_size=8", "patch_size=2", "depth=2", "embed_dim=32", "num_heads=2")
TOKENS = (
    "student.name=deit_tiny_distilled_patch16_224",
    "teacher.name=vit_tiny_patch16_224",
    *(f"{role}.kwargs.{word}" for role in ("student", "teacher") for word in VIT),
)


@pytest.mark.parametrize(
    ("methods", "models"),
    [
        pytest.param(OF_MAPS, ("student.name=resnet8",), id="CNNs", marks=pytest.mark.slow),
        pytest.param(OF_TOKENS, TOKENS, id="ViTs", marks=pytest.mark.slow),
    ],
)
def test_each_method_trains_a_student_of_a_sweep(
    methods: list[str], models: tuple[str, ...], tmp_path: Path
) -> None:
    sweep = f"loss={','.join(f'[cross_entropy,{name}]' for name in methods)}"
    output = succeed(
        *TINY,
        *models,
        "controls=[]",
        "test=never",
        "examples=0",
        "-m",
        sweep,
        f"out={tmp_path / 'all'}",
        f"stages={tmp_path / 'stages'}",
    )
    assert "failed" not in output
    trained = [results(tmp_path / "all" / str(number)) for number in range(len(methods))]
    assert [list(each["config"]["loss"]) for each in trained] == [
        ["cross_entropy", name] for name in methods
    ]
    assert all(0 <= each["validation"]["student"]["top1"] <= 1 for each in trained)
