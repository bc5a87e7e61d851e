"""Properties of all terms on logits, and of some of them."""

import math
from dataclasses import replace

import pytest
import torch

from kd_app.losses.logits import LogitTerm, standardize_logits
from tests.losses.samples import (
    TERMS,
    batch,
    class_of,
    gradient,
    labels,
    leaf,
    logits,
    make,
    normal,
)

LOGIT_TERMS = [name for name in TERMS if issubclass(class_of(name), LogitTerm)]
every_logit_term = pytest.mark.parametrize("name", LOGIT_TERMS)
STUDENT, TEACHER = normal(6, 5, seed=1), normal(6, 5, seed=2)


def value(
    name: str, student: torch.Tensor, teacher: torch.Tensor, **settings: object
) -> torch.Tensor:
    result: torch.Tensor = make(name, **settings).to(student.dtype)(
        logits(student), logits(teacher), labels(len(student), student.shape[1])
    )
    return result


def test_standardized_logits_have_mean_0_and_deviation_1() -> None:
    z = standardize_logits(3 + 7 * STUDENT)
    torch.testing.assert_close(z.mean(1), torch.zeros(6, dtype=z.dtype))
    torch.testing.assert_close(z.std(1), torch.ones(6, dtype=z.dtype))


def test_logits_that_are_all_the_same_are_standardized_to_0_with_a_finite_gradient() -> None:
    z = leaf(torch.full((2, 4), 3.0))
    result = standardize_logits(z)
    assert not result.any()
    assert gradient(result.sum(), z).isfinite().all()


@pytest.mark.parametrize(
    "name", [name for name in LOGIT_TERMS if name != "multi_level"]
)  # of which only a part is: the next test
def test_standardize_is_the_term_on_standardized_logits(name: str) -> None:
    result = value(name, STUDENT, TEACHER, standardize=True)
    torch.testing.assert_close(
        result,
        value(name, standardize_logits(STUDENT), standardize_logits(TEACHER), standardize=False),
    )
    assert result != value(name, STUDENT, TEACHER, standardize=False)


def test_multi_level_standardizes_the_probabilities_and_not_the_relations() -> None:
    relations = [
        value("multi_level", 3 * STUDENT, STUDENT, standardize=True, temperatures=[t])
        for t in (1.0, 2.0)
    ]
    # The probabilities of the first part are the same.
    assert all(relation > 0 for relation in relations)
    torch.testing.assert_close(
        value("soft_target", 3 * STUDENT, STUDENT, standardize=True).item(), 0.0, atol=1e-6, rtol=0
    )


@every_logit_term
def test_a_class_without_an_image_and_one_image_alone_give_numbers(name: str) -> None:
    for images in (1, 3):
        student = leaf(STUDENT[:images].float())
        term, zeros = make(name), batch(torch.zeros(images, dtype=torch.int64))
        result = term(logits(student), logits(TEACHER[:images].float()), zeros)
        assert result.isfinite()
        assert gradient(result, student).isfinite().all()


@pytest.mark.parametrize("name", ["soft_target", "dist", "ttm", "wttm", "ctkd", "multi_level"])
def test_what_reads_no_label_does_not_change_with_the_labels(name: str) -> None:
    term = make(name).double()
    result = [term(logits(STUDENT), logits(TEACHER), labels(6, 5, seed=seed)) for seed in (0, 1)]
    assert torch.equal(*result)


def test_nkd_leaves_images_without_a_label_out() -> None:
    labeled = torch.tensor([True, False, True, True, False, True])
    target = torch.tensor([0, -1, 1, 2, 9, 3])
    result = make("nkd")(logits(STUDENT), logits(TEACHER), batch(target, labeled))
    expected = make("nkd")(
        logits(STUDENT[labeled]), logits(TEACHER[labeled]), batch(target[labeled])
    )
    torch.testing.assert_close(result, expected)


def test_dist_does_not_change_with_shift_and_size_of_what_it_correlates() -> None:
    p = STUDENT.softmax(1)
    flatter = (
        0.5 * p + 0.1
    ).log()  # the same probabilities, halved and evened out: correlation 1 over the classes
    result = value("dist", p.log(), flatter, temperature=1.0, gamma=0.0)
    torch.testing.assert_close(result.item(), 0.0, atol=1e-6, rtol=0)
    assert value("soft_target", p.log(), flatter, temperature=1.0) > 0.01


def test_ttm_with_power_1_is_soft_target_at_temperature_1() -> None:
    for name in ("ttm", "wttm"):
        torch.testing.assert_close(
            value(name, STUDENT, TEACHER, power=1.0),
            value("soft_target", STUDENT, TEACHER, temperature=1.0),
        )


def test_wttm_counts_an_image_more_the_less_sure_the_teacher_is() -> None:
    sure, even = torch.tensor([[50.0, 0.0, 0.0]]).double(), torch.zeros(1, 3).double()
    student = normal(1, 3, seed=3)
    for teacher, expected in ((sure, 1.0), (even, math.sqrt(3))):
        ratio = value("wttm", student, teacher, power=0.5) / value(
            "ttm", student, teacher, power=0.5
        )
        torch.testing.assert_close(ratio.item(), expected, rtol=1e-6, atol=0)


def test_the_temperature_of_ctkd_climbs_where_the_student_descends() -> None:
    term = make("ctkd", rise=0.5).double()
    for progress, share in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)):
        assert term.strength.compute_factor(progress) == pytest.approx(share)
        result = term(logits(STUDENT), logits(TEACHER), replace(labels(6, 5), progress=progress))
        reversed_ = gradient(result, term.theta)
        step = 1e-6
        with torch.no_grad():
            term.theta.add_(step)
            ahead = term(logits(STUDENT), logits(TEACHER), labels(6, 5))
            term.theta.sub_(step)
        torch.testing.assert_close(
            reversed_.item(), -share * (ahead - result).item() / step, rtol=1e-3, atol=1e-9
        )


def test_multi_level_counts_images_twice_of_which_the_teacher_is_unsure() -> None:
    teacher = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.1, 0.0]]).double()
    other = teacher + torch.tensor([[0.0, 1.0, 0.0]])
    sure, unsure = (torch.where(torch.arange(2)[:, None] == row, other, teacher) for row in (0, 1))
    settings = {"temperatures": [1.0], "standardize": False}
    for student, times in ((sure, 1), (unsure, 2)):
        soft = value("soft_target", student, teacher, temperature=1.0)
        relations = value("multi_level", student, teacher, **settings) - times * soft
        p, q = student.softmax(1), teacher.softmax(1)
        images, classes = ((b @ b.T - a @ a.T).square().sum(1) for a, b in ((p, q), (p.T, q.T)))
        rare = q.sum(0) <= q.sum(0).median()
        torch.testing.assert_close(relations, images[1] / 2 + classes[rare].sum() / 3)
