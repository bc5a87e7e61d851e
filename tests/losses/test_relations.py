"""Properties of every term that compares images, or channels, with each other."""

import pytest
import torch

from kd_app.config import RequestError
from kd_app.models.outputs import Outputs
from tests.losses.samples import TERMS, class_of, gradient, labels, leaf, make, maps, normal

POOLED = ["rkd", "pkt", "cc"]


def compute_pooled(
    name: str, student: torch.Tensor, teacher: torch.Tensor, **settings: object
) -> torch.Tensor:
    result: torch.Tensor = make(name, **settings)(
        Outputs(embedding=student), Outputs(embedding=teacher), labels(len(student))
    )
    return result


@pytest.mark.parametrize("name", ["sp", *POOLED, "dist", "multi_level"])
def test_terms_that_compare_images_need_the_global_batch(name: str) -> None:
    assert class_of(name).needs_global_batch


@pytest.mark.parametrize("name", [name for name in TERMS if class_of(name).level == "relation"])
def test_models_that_cannot_be_compared_are_refused_by_name(name: str) -> None:
    with pytest.raises(
        RequestError, match=f"{name} compares .*the student provides none.*soft_target"
    ):
        make(name).build(Outputs(), Outputs())


@pytest.mark.parametrize("name", POOLED)
def test_a_rotation_of_the_features_into_more_dimensions_changes_nothing(name: str) -> None:
    x = normal(7, 4, seed=1)
    rotation = torch.linalg.qr(normal(9, 4, seed=2)).Q.T
    torch.testing.assert_close(
        compute_pooled(name, x, 3 * x @ rotation).item(), 0.0, atol=1e-7, rtol=0
    )
    assert compute_pooled(name, x, normal(7, 4, seed=3)) > 1e-5


@pytest.mark.parametrize("name", POOLED)
def test_an_image_that_is_there_twice_gives_a_finite_gradient(name: str) -> None:
    x = normal(4, 6, seed=1, dtype=torch.float32)
    student = leaf(torch.cat((x, x)))
    value = compute_pooled(name, student, normal(8, 5, seed=2, dtype=torch.float32))
    assert gradient(value, student).isfinite().all()


def test_rkd_of_features_that_are_close_together_is_as_exact_as_of_others() -> None:
    """Distances from inner products cancel here; the reference is wrong in half
    precision.
    """
    x, teacher = normal(6, 8, seed=1), normal(6, 8, seed=2)
    exact = compute_pooled("rkd", x, teacher)
    moved = compute_pooled("rkd", (x + 1000).float(), teacher.float())
    torch.testing.assert_close(moved.double(), exact, rtol=2e-3, atol=0)


def test_sp_has_rows_of_norm_1_and_not_of_sum_1() -> None:
    """A bug of another toolkit: the dimension is passed as the norm."""
    student, teacher = normal(4, 3, 2, 2, seed=1), normal(4, 5, 3, 3, seed=2)
    ours, theirs = (x.flatten(1) @ x.flatten(1).T for x in (student, teacher))
    result = make("sp")(maps(student), maps(teacher), labels(4))
    right, wrong = (
        (ours / ours.norm(p, 1, True) - theirs / theirs.norm(p, 1, True)).square().mean()
        for p in (2, 1)
    )
    torch.testing.assert_close(result, right)
    assert abs(result / wrong - 1) > 0.1


def test_cc_with_many_terms_is_the_gaussian_kernel() -> None:
    x, y = (torch.nn.functional.normalize(normal(5, 4, seed=seed)) for seed in (1, 2))
    kernels = [torch.exp(-0.4 * torch.cdist(z, z).square()) for z in (x, y)]
    torch.testing.assert_close(
        compute_pooled("cc", 2 * x, 5 * y, order=20),
        (kernels[0] - kernels[1]).square().mean(),
        rtol=1e-6,
        atol=0,
    )


def test_ickd_weighs_an_image_the_same_in_a_batch_of_any_size() -> None:
    """The ImageNet code divides by the batch twice, so that its weight depends on the
    batch size.
    """
    student, teacher = maps(normal(3, 4, 3, 3, seed=1)), maps(normal(3, 6, 3, 3, seed=2))
    term = make("ickd")
    term.build(student, teacher)
    term.double()
    twice = [maps(x.features[0].repeat(2, 1, 1, 1)) for x in (student, teacher)]
    torch.testing.assert_close(term(*twice, labels(6)), term(student, teacher, labels(3)))
