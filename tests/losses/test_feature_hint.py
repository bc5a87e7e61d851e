import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kd_app.config import RequestError
from kd_app.losses.feature_hint import FeatureHint
from kd_app.models.outputs import Outputs
from tests.losses.samples import descend, gradient, labels, leaf, make, maps, normal

sides = st.integers(1, 30)


def hint(
    student: Outputs, teacher: Outputs, *, stage: int = -1, activation: str = "none"
) -> FeatureHint:
    term: FeatureHint = make("feature_hint", stage=stage, activation=activation)
    term.build(student, teacher)
    return term.double()


@pytest.mark.parametrize(
    ("student", "teacher", "convolution", "kernel", "stride"),
    [
        ((7, 7), (7, 7), nn.Conv2d, (1, 1), (1, 1)),
        ((14, 14), (7, 7), nn.Conv2d, (3, 3), (2, 2)),
        ((2, 2), (1, 1), nn.Conv2d, (3, 3), (2, 2)),
        ((7, 7), (14, 14), nn.ConvTranspose2d, (4, 4), (2, 2)),
        ((9, 9), (7, 7), nn.Conv2d, (3, 3), (1, 1)),
        ((16, 14), (14, 14), nn.Conv2d, (3, 1), (1, 1)),
        (
            (56, 56),
            (14, 14),
            nn.Conv2d,
            (1, 1),
            (1, 1),
        ),  # a valid convolution would need a kernel of 43 x 43
        ((4, 4), (7, 7), nn.Conv2d, (1, 1), (1, 1)),
        ((4, 9), (7, 7), nn.Conv2d, (1, 1), (1, 1)),
    ],
)
def test_the_convolution_follows_from_the_two_sizes(
    student: tuple[int, int],
    teacher: tuple[int, int],
    convolution: type[nn.Module],
    kernel: tuple[int, int],
    stride: tuple[int, int],
) -> None:
    conv = hint(
        maps(normal(2, 3, *student, seed=1)), maps(normal(2, 5, *teacher, seed=2))
    ).adapter.conv
    assert isinstance(conv, convolution)
    assert (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride) == (
        3,
        5,
        kernel,
        stride,
    )


@settings(max_examples=60)
@given(sides, sides, sides, sides, st.integers(1, 3))
def test_maps_of_any_two_sizes_can_be_compared_with_a_small_regressor(
    hs: int, ws: int, ht: int, wt: int, images: int
) -> None:
    student, teacher = (
        maps(leaf(normal(images, 3, hs, ws, seed=1))),
        maps(normal(images, 4, ht, wt, seed=2)),
    )
    term = hint(student, teacher)
    value = term(student, teacher, labels(images))
    assert value.isfinite()
    assert gradient(value, student.features[0]).isfinite().all()
    assert sum(p.numel() for p in term.parameters()) <= 3 * 4 * 25 + 3 * 4


@pytest.mark.parametrize("teacher_size", [4, 9, 3])
def test_it_is_zero_where_the_regressor_gives_the_teachers_map(teacher_size: int) -> None:
    student, other = normal(3, 4, 6, 6, seed=1), normal(3, 4, teacher_size, teacher_size, seed=2)
    term = hint(maps(student), maps(other)).eval()
    if not term.adapter.pointwise:
        teacher = term.adapter(student).detach()
    else:
        size = min(6, teacher_size)
        teacher = term.adapter(nn.functional.adaptive_avg_pool2d(student, size)).detach()
    assert term(maps(student), maps(teacher), labels(3)) < 1e-25


def test_the_regressor_learns_a_teacher_that_is_a_linear_map_of_the_student() -> None:
    student = normal(16, 4, 5, 5, seed=1)
    teacher = torch.einsum("tc,bchw->bthw", normal(6, 4, seed=2), student)
    term = hint(maps(student), maps(teacher))
    start, end = descend(
        lambda: term(maps(student), maps(teacher), labels(16)),
        term.parameters(),
        steps=150,
        lr=0.05,
    )
    assert end < 0.02 * start


def test_a_student_that_follows_the_gradient_comes_nearer_to_the_teacher() -> None:
    student, teacher = leaf(normal(4, 3, 5, 5, seed=1)), maps(normal(4, 4, 7, 7, seed=2))
    term = hint(maps(student), teacher)
    start, end = descend(
        lambda: term(maps(student), teacher, labels(4)), [student], steps=60, lr=0.1
    )
    assert end < 0.9 * start


@pytest.mark.parametrize(
    ("activation", "lowest", "relu"),
    [("auto", 0.0, True), ("auto", -0.1, False), ("relu", -0.1, True), ("none", 0.0, False)],
)
def test_auto_ends_in_a_relu_where_the_teacher_has_no_negative_value(
    activation: str, lowest: float, relu: bool
) -> None:
    student, teacher = normal(2, 3, 4, 4, seed=1), normal(2, 5, 4, 4, seed=2).clamp(min=lowest)
    result = hint(maps(student), maps(teacher), activation=activation).adapter(student)
    assert bool((result >= 0).all()) is relu


@pytest.mark.parametrize(("stage", "width"), [(-1, 4), (-2, 2), (-3, 1), (-9, 1)])
def test_the_stage_counts_from_the_deepest_and_stops_at_the_shallowest_common_one(
    stage: int, width: int
) -> None:
    student = maps(*(normal(2, c, 8 // c, 8 // c, seed=c) for c in (1, 2, 4)))
    teacher = maps(*(normal(2, c, 8, 8, seed=c) for c in (5, 6, 7, 8)))
    term = hint(student, teacher, stage=stage)
    assert (term.adapter.conv.in_channels, term.adapter.conv.out_channels) == (
        width,
        {4: 8, 2: 7, 1: 6}[width],
    )


def test_one_image_with_a_map_of_one_cell_uses_the_running_statistics() -> None:
    student, teacher = maps(leaf(normal(1, 3, 1, 1, seed=1))), maps(normal(1, 5, 1, 1, seed=2))
    term = hint(student, teacher)
    value = term(student, teacher, labels(1))
    torch.testing.assert_close(value, term.eval()(student, teacher, labels(1)))
    assert gradient(value, student.features[0]).any()


def test_the_adapter_is_part_of_the_terms_parameters_and_state() -> None:
    term = hint(maps(normal(2, 3, 4, 4, seed=1)), maps(normal(2, 5, 4, 4, seed=2)))
    assert {name for name, _ in term.named_parameters()} == {
        f"adapter.{x}.{y}" for x in ("conv", "bn") for y in ("weight", "bias")
    }
    assert {"adapter.bn.running_mean", "adapter.bn.running_var"} <= set(term.state_dict())


def test_the_adapter_is_built_on_the_students_device() -> None:
    student = maps(torch.empty(2, 3, 4, 4, device="meta"))
    term: FeatureHint = make("feature_hint", activation="none")
    term.build(student, maps(torch.empty(2, 5, 4, 4, device="meta")))
    assert {p.device.type for p in term.parameters()} == {"meta"}


@pytest.mark.parametrize("wrong", [{"stage": 0}, {"stage": 1.5}, {"activation": "gelu"}])
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        make("feature_hint", **wrong)
