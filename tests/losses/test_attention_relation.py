import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kd_app.config import RequestError
from kd_app.models.outputs import Attention, Outputs
from tests.losses.samples import descend, gradient, labels, leaf, make, normal, split_axis

shapes = {
    "images": st.integers(1, 4),
    "tokens": st.integers(2, 9),
    "relation_heads": st.sampled_from([1, 2, 4]),
    "seed": st.integers(0, 1000),
}


def block(qkv: Tensor, heads: int = 2, num_prefix: int = 0) -> Attention:
    """A block from [3, B, N, width]."""
    query, key, value = split_axis(qkv, 3, heads).transpose(2, 3)
    return Attention(query, key, value, num_prefix)


def relate(student: Attention, teacher: Attention, **changed: object) -> Tensor:
    term = make("attention_relation", **{"relation_heads": 4, **changed})
    term.build(Outputs(attention=[student]), Outputs(attention=[teacher]))
    value: Tensor = term(
        Outputs(attention=[student]), Outputs(attention=[teacher]), labels(len(student.query))
    )
    return value


@settings(max_examples=30)
@given(**shapes, weight=st.floats(0.1, 5))
def test_it_is_the_formula(
    images: int, tokens: int, relation_heads: int, seed: int, weight: float
) -> None:
    student, teacher = (
        normal(3, images, tokens, 8, seed=seed),
        normal(3, images, tokens, 12, seed=seed + 1),
    )
    relations = {"qq": (0, 0, weight), "vv": (2, 2, 1.0), "qk": (0, 1, 2.0)}
    expected = torch.zeros((), dtype=torch.float64)
    for x, y, w in relations.values():
        logs = []
        for qkv in (student, teacher):
            heads, d = split_axis(qkv, 3, relation_heads), qkv.shape[-1] // relation_heads
            logs.append(
                (torch.einsum("bnhd,bmhd->bhnm", heads[x], heads[y]) / math.sqrt(d)).log_softmax(-1)
            )
        expected += w * (logs[1].exp() * (logs[1] - logs[0])).sum(-1).mean()
    weights = {name: w for name, (_, _, w) in relations.items()}
    result = relate(
        block(student, 4), block(teacher, 3), relation_heads=relation_heads, relations=weights
    )
    torch.testing.assert_close(result, expected)


@settings(max_examples=20)
@given(**shapes)
def test_it_is_zero_and_flat_where_the_tokens_are_related_alike_whatever_the_head_counts(
    images: int, tokens: int, relation_heads: int, seed: int
) -> None:
    student = leaf(normal(3, images, tokens, 8, seed=seed))
    value = relate(block(student, 1), block(student.detach(), 8), relation_heads=relation_heads)
    assert value == 0
    assert gradient(value, student).abs().max() < 1e-12


@settings(max_examples=20)
@given(**shapes)
def test_a_rotation_within_the_relation_heads_and_an_order_of_the_tokens_change_nothing(
    images: int, tokens: int, relation_heads: int, seed: int
) -> None:
    student, teacher = (
        normal(3, images, tokens, 8, seed=seed),
        normal(3, images, tokens, 12, seed=seed + 1),
    )
    expected = relate(block(student), block(teacher), relation_heads=relation_heads)
    rotation, _ = torch.linalg.qr(normal(8 // relation_heads, 8 // relation_heads, seed=seed))
    rotated = (split_axis(student, 3, relation_heads) @ rotation).flatten(-2)
    torch.testing.assert_close(
        relate(block(rotated), block(teacher), relation_heads=relation_heads), expected
    )
    torch.testing.assert_close(
        relate(block(student.flip(2)), block(teacher.flip(2)), relation_heads=relation_heads),
        expected,
    )


@settings(max_examples=6)
@given(images=shapes["images"], tokens=shapes["tokens"], seed=shapes["seed"])
def test_a_student_that_follows_the_gradient_relates_the_tokens_as_the_teacher_does(
    images: int, tokens: int, seed: int
) -> None:
    student, teacher = (
        leaf(normal(3, images, tokens, 8, seed=seed)),
        block(normal(3, images, tokens, 12, seed=seed + 1)),
    )
    term = make("attention_relation", relation_heads=4)

    def value() -> Tensor:
        result: Tensor = term(
            Outputs(attention=[block(student)]), Outputs(attention=[teacher]), labels(images)
        )
        return result

    start, end = descend(value, [student], steps=25, lr=0.2)
    assert end < 0.5 * start


def test_prefix_tokens_take_part_when_both_models_have_equally_many() -> None:
    student, teacher = normal(3, 2, 6, 8, seed=1), normal(3, 2, 6, 8, seed=2)
    result = relate(block(student, num_prefix=1), block(teacher, num_prefix=1))
    torch.testing.assert_close(result, relate(block(student), block(teacher)))


def test_prefix_tokens_are_dropped_on_both_sides_when_the_counts_differ() -> None:
    student, teacher = normal(3, 2, 6, 8, seed=1), normal(3, 2, 9, 8, seed=2)
    result = relate(block(student, num_prefix=1), block(teacher, num_prefix=4))
    torch.testing.assert_close(result, relate(block(student[:, :, 1:]), block(teacher[:, :, 4:])))


def test_the_students_last_block_is_compared_with_the_chosen_block_of_the_teacher() -> None:
    student, teacher = (
        [block(normal(3, 2, 5, 8, seed=seed)) for seed in seeds] for seeds in ((1, 2), (3, 4, 5))
    )
    term = make("attention_relation", relation_heads=4, teacher_block=-2)
    result = term(Outputs(attention=student), Outputs(attention=teacher), labels(2))
    torch.testing.assert_close(result, relate(student[-1], teacher[1]))


def test_very_large_queries_give_no_nan() -> None:
    """Fault 11 of other toolkits: NaN gradients."""
    student = leaf(normal(3, 2, 5, 8, seed=1, scale=1e4, dtype=torch.float32))
    value = relate(
        block(student), block(normal(3, 2, 5, 8, seed=2, scale=1e4, dtype=torch.float32))
    )
    assert value.isfinite()
    assert gradient(value, student).isfinite().all()


def outputs(tokens: int = 5, width: int = 16, num_prefix: int = 0, blocks: int = 1) -> Outputs:
    return Outputs(
        attention=[block(normal(3, 2, tokens, width, seed=0), num_prefix=num_prefix)] * blocks
    )


OTHERS = ".*soft_target, feature_hint, attention_transfer"


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (Outputs(), outputs(), f"the student provides none.*{OTHERS}"),
        (outputs(), Outputs(), f"the teacher provides none.*{OTHERS}"),
        (
            outputs(tokens=5),
            outputs(tokens=6),
            f"student has 5 tokens, and that of the teacher 6.*{OTHERS}",
        ),
        (
            outputs(tokens=6, num_prefix=1),
            outputs(tokens=6, num_prefix=2),
            f"student has 5 tokens, and that of the teacher 4.*{OTHERS}",
        ),
        (
            outputs(width=16),
            outputs(width=24),
            rf"student 16, teacher 24.*one of \[1, 2, 4, 8\]{OTHERS}",
        ),
    ],
)
def test_pairs_that_cannot_be_compared_are_refused_with_the_terms_that_can(
    student: Outputs, teacher: Outputs, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        make("attention_relation", relation_heads=16).build(student, teacher)


def test_a_block_that_the_teacher_has_not_is_refused() -> None:
    with pytest.raises(RequestError, match="Expected -1 to -3"):
        make("attention_relation", teacher_block=-4).build(outputs(blocks=3), outputs(blocks=3))


@pytest.mark.parametrize(
    "wrong",
    [
        {"relation_heads": 0},
        {"relations": {}},
        {"relations": {"qv": 1.0}},
        {"relations": {"qq": 0.0}},
        {"teacher_block": 1},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        make("attention_relation", **wrong)
