import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kd_app.config import RequestError
from kd_app.losses.attention_transfer import compute_attention_map
from tests.losses.samples import descend, gradient, labels, leaf, make, maps, normal, split_axis

shapes = {
    "images": st.integers(1, 5),
    "side": st.integers(2, 9),
    "channels": st.integers(1, 8),
    "seed": st.integers(0, 1000),
}


def transfer(student: list[Tensor], teacher: list[Tensor], stages: int = 3) -> Tensor:
    value: Tensor = make("attention_transfer", stages=stages)(
        maps(*student), maps(*teacher), labels(len(student[0]))
    )
    return value


@settings(max_examples=30)
@given(**shapes, scale=st.floats(1e-3, 1e3))
def test_an_attention_map_is_independent_of_scale_and_channels(
    images: int, side: int, channels: int, seed: int, scale: float
) -> None:
    x = normal(images, channels, side, side + 1, seed=seed)
    energy = x.square().mean(1).flatten(1)
    result = compute_attention_map(x)
    torch.testing.assert_close(result, energy / energy.square().sum(1, keepdim=True).sqrt())
    torch.testing.assert_close(compute_attention_map(-scale * x.flip(1)), result)
    torch.testing.assert_close(compute_attention_map(x.repeat(1, 3, 1, 1)), result)


@settings(max_examples=30)
@given(**shapes, scale=st.floats(1e-2, 1e2))
def test_it_is_zero_and_flat_where_student_and_teacher_look_at_the_same_places(
    images: int, side: int, channels: int, seed: int, scale: float
) -> None:
    student = leaf(normal(images, channels, side, side, seed=seed))
    value = transfer([student], [(scale * student.detach()).repeat(1, 2, 1, 1)])
    assert value < 1e-25
    assert gradient(value, student).abs().max() < 1e-12


@settings(max_examples=8)
@given(**shapes, teacher_side=st.integers(2, 12))
def test_a_student_that_follows_the_gradient_looks_where_the_teacher_looks(
    images: int, side: int, channels: int, seed: int, teacher_side: int
) -> None:
    student, teacher = (
        leaf(normal(images, channels, side, side, seed=seed)),
        [normal(images, 3, teacher_side, teacher_side, seed=seed + 1)],
    )
    start, end = descend(lambda: transfer([student], teacher), [student], steps=50, lr=0.04)
    assert end < 0.6 * start


def test_the_larger_map_is_averaged_before_it_is_squared() -> None:
    small, large = normal(2, 3, 4, 4, seed=1), normal(2, 5, 8, 8, seed=2)
    averaged = split_axis(split_axis(large, 3, 4), 2, 4).mean((3, 5))
    torch.testing.assert_close(transfer([small], [large]), transfer([small], [averaged]))
    torch.testing.assert_close(transfer([large], [small]), transfer([averaged], [small]))


@pytest.mark.parametrize("sizes", [(56, 14), (7, 14), (9, 14), (14, 9), (5, 3)])
def test_a_cnn_and_a_vit_can_be_compared_whatever_their_grids(sizes: tuple[int, int]) -> None:
    student = leaf(normal(2, 8, sizes[0], sizes[0], seed=1))
    tokens = normal(2, sizes[1] ** 2, 12, seed=2).transpose(1, 2).reshape(2, 12, sizes[1], sizes[1])
    value = transfer([student], [tokens])
    assert value > 0
    assert gradient(value, student).any()


def test_the_term_is_the_sum_over_the_deepest_stages() -> None:
    student, teacher = (
        [normal(2, width * c, 16 // c, 16 // c, seed=c + width) for c in (1, 2, 4, 8)]
        for width in (2, 3)
    )
    one_by_one = [transfer([s], [t]) for s, t in zip(student, teacher, strict=True)]
    torch.testing.assert_close(
        transfer(student, teacher, stages=3), torch.stack(one_by_one[1:]).sum()
    )
    torch.testing.assert_close(transfer(student, teacher, stages=9), torch.stack(one_by_one).sum())
    torch.testing.assert_close(
        transfer(student[2:], teacher, stages=3), torch.stack(one_by_one[2:]).sum()
    )


def test_stages_that_share_one_cell_are_left_out() -> None:
    student, teacher = (
        [normal(2, 3, side, side, seed=side) for side in sides] for sides in ((4, 2, 1), (8, 4, 2))
    )
    assert torch.equal(transfer(student, teacher, stages=2), transfer(student[:2], teacher[:2]))


def test_models_that_share_no_more_than_one_cell_are_refused() -> None:
    student, teacher = maps(normal(2, 3, 1, 1, seed=1)), maps(normal(2, 5, 2, 2, seed=2))
    with pytest.raises(
        RequestError, match=r"share more than one cell.*\(1, 1\).*\(2, 2\).*soft_target"
    ):
        make("attention_transfer").build(student, teacher)


def test_a_map_without_any_activation_has_a_finite_gradient() -> None:
    student = leaf(torch.zeros(2, 3, 4, 4))
    value = transfer([student], [normal(2, 3, 4, 4, seed=1, dtype=torch.float32)])
    assert value.isfinite()
    assert gradient(value, student).isfinite().all()


@pytest.mark.parametrize("stages", [0, -1, "all"])
def test_a_number_of_stages_that_is_none_is_refused(stages: object) -> None:
    with pytest.raises(RequestError, match="stages"):
        make("attention_transfer", stages=stages)
