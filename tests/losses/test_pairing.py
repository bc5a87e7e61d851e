import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_app.config import RequestError
from kd_app.losses.pairing import compute_common_size, match_sizes, pair_stages
from kd_app.models.outputs import Outputs
from tests.losses.samples import maps, normal

sides = st.integers(1, 12)


@given(sides, sides, sides, sides)
def test_two_maps_meet_at_the_smaller_height_and_width_and_keep_their_mean_where_cells_are_whole(
    ha: int, wa: int, hb: int, wb: int
) -> None:
    a, b = normal(2, 3, ha, wa, seed=1), normal(2, 5, hb, wb, seed=2)
    small_a, small_b = match_sizes(a, b)
    assert (
        small_a.shape[2:]
        == small_b.shape[2:]
        == compute_common_size(a, b)
        == (min(ha, hb), min(wa, wb))
    )
    if ha % small_a.shape[2] == 0 and wa % small_a.shape[3] == 0:
        torch.testing.assert_close(small_a.mean((2, 3)), a.mean((2, 3)))


def test_maps_of_one_size_are_left_as_they_are() -> None:
    a, b = normal(2, 3, 4, 5, seed=1), normal(2, 6, 4, 5, seed=2)
    assert all(x is y for x, y in zip(match_sizes(a, b), (a, b), strict=True))


def test_stages_are_paired_from_the_deepest_upward() -> None:
    student, teacher = (
        [normal(1, width, 2, 2, seed=0) for width in widths] for widths in ((1, 2), (3, 4, 5))
    )
    pairs = pair_stages("feature_hint", maps(*student), maps(*teacher))
    assert [(s.shape[1], t.shape[1]) for s, t in pairs] == [(2, 5), (1, 4)]


@pytest.mark.parametrize(("who", "student", "teacher"), [("student", 0, 1), ("teacher", 1, 0)])
def test_a_model_without_maps_is_refused_by_name(who: str, student: int, teacher: int) -> None:
    ours, theirs = (Outputs(features=[normal(1, 1, 2, 2, seed=0)] * n) for n in (student, teacher))
    with pytest.raises(
        RequestError,
        match=rf"feature_hint compares feature maps, but the {who} provides none.*soft_target",
    ):
        pair_stages("feature_hint", ours, theirs)
