"""Diagnostics of single loss terms: faults in the first steps, and shares of the gradient."""

import pytest
import torch
from torch import Tensor, nn

from kd_app.config import RunError
from kd_app.losses.base import LossTerm
from kd_app.losses.soft_target import SoftTarget
from kd_app.training.diagnostics import (
    check_terms,
    compute_gradient_norms,
    compute_gradient_shares,
    find_faults,
)
from kd_app.training.fit import silence_lightning
from kd_app.training.loss import DistillationLoss
from tests.training.small_parts import Net, distillation, seeded
from tests.training.small_terms import Adapted, Cut, Distance, Flat, Labels, answers, batch, student
from tests.training.test_module import fitted


def checked(
    loss: DistillationLoss, model: nn.Linear | None = None, *, agree: bool = False
) -> Tensor:
    """One step's loss after the check."""
    model, images = model or student(), batch()
    own, teacher = answers(model, images)
    if agree:
        assert own.logits is not None
        teacher.logits = own.logits.detach()
    loss.build(own, teacher)
    total, values = loss(own, teacher, images)
    check_terms(loss, values, model, images)
    assert isinstance(total, Tensor)
    return total


def test_terms_that_teach_pass_and_the_graph_is_still_there() -> None:
    model = student()
    loss = DistillationLoss(
        {
            "labels": Labels(factor=1.0),
            "distance": Distance(factor=1.0),
            "adapted": Adapted(reaches=True),
        },
        {"labels": 1.0, "distance": 1.0, "adapted": 1.0},
    )
    total = checked(loss, model)
    assert model.weight.grad is None
    total.backward()
    assert model.weight.grad is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("term", [Labels, Distance])
def test_a_term_that_is_not_finite_ends_the_run_by_name(
    term: type[Labels | Distance], value: float
) -> None:
    loss = DistillationLoss(
        {"fine": Distance(factor=1.0), "broken": term(factor=value)}, {"fine": 1.0, "broken": 1.0}
    )
    with pytest.raises(RunError, match=r"The loss term broken is -?(nan|inf)"):
        checked(loss)


def test_a_distillation_term_that_is_exactly_zero_ends_the_run_by_name() -> None:
    with pytest.raises(RunError, match="soft_target is exactly zero"):
        checked(
            DistillationLoss(
                {"soft_target": SoftTarget(temperature=1.0, standardize=False)},
                {"soft_target": 1.0},
            ),
            agree=True,
        )


def test_a_label_term_may_be_zero() -> None:
    checked(
        DistillationLoss(
            {"labels": Labels(factor=0.0), "distance": Distance(factor=1.0)},
            {"labels": 1.0, "distance": 1.0},
        )
    )


@pytest.mark.parametrize(
    "term",
    [Cut(factor=1.0), Adapted(reaches=False), Flat(factor=1.0)],
    ids=["cut", "adapter alone", "flat"],
)
def test_a_distillation_term_without_gradient_for_the_student_ends_the_run_by_name(
    term: LossTerm,
) -> None:
    with pytest.raises(RunError, match="The loss term idle has no gradient for the student"):
        checked(
            DistillationLoss(
                {"distance": Distance(factor=1.0), "idle": term}, {"distance": 1.0, "idle": 1.0}
            )
        )


def test_a_term_of_weight_zero_is_only_watched() -> None:
    checked(
        DistillationLoss(
            {"distance": Distance(factor=1.0), "watched": Cut(factor=1.0)},
            {"distance": 1.0, "watched": 0.0},
        )
    )


def test_a_frozen_part_of_the_student_is_no_missing_gradient() -> None:
    model = student()
    model.weight.requires_grad_(False)
    checked(DistillationLoss({"distance": Distance(factor=1.0)}, {"distance": 1.0}), model)


def test_every_fault_is_found_with_its_kind() -> None:
    terms: dict[str, LossTerm] = {
        "fine": Distance(factor=1.0),
        "wild": Labels(factor=float("nan")),
        "zero": Distance(factor=0.0),
        "flat": Flat(factor=1.0),
    }
    loss = DistillationLoss(terms, dict.fromkeys(terms, 1.0))
    model, images = student(), batch()
    _, values = loss(*answers(model, images), images)
    faults = list(find_faults(loss, values, model, images))
    assert [(fault.term, fault.kind) for fault in faults] == [
        ("wild", "not-finite"),
        ("zero", "zero"),
        ("flat", "no-gradient"),
    ]


def test_the_norm_of_a_gradient_grows_with_the_weight_and_is_zero_without_a_gradient() -> None:
    terms: dict[str, LossTerm] = {
        "one": Distance(factor=1.0),
        "three": Distance(factor=1.0),
        "cut": Cut(factor=1.0),
    }
    loss = DistillationLoss(terms, {"one": 1.0, "three": 3.0, "cut": 1.0})
    model, images = student(), batch()
    _, values = loss(*answers(model, images), images)
    norms = compute_gradient_norms(loss, values, model)
    assert norms["three"] == pytest.approx(3 * norms["one"])
    assert norms["one"] > norms["cut"] == 0


def soft() -> SoftTarget:
    return SoftTarget(temperature=4.0, standardize=False)


def test_shares_sum_to_1_and_two_terms_that_are_the_same_have_half_each() -> None:
    model, images = student(), batch()
    own, teacher = answers(model, images)
    for chosen, weights in (
        ({"one": soft(), "other": soft()}, {"one": 1.0, "other": 1.0}),
        (
            {
                "labels": Labels(factor=1.0),
                "soft": soft(),
                "maps": Adapted(reaches=True),
                "cut": Cut(factor=1.0),
            },
            {"labels": 1.0, "soft": 2.0, "maps": 3.0, "cut": 1.0},
        ),
    ):
        loss = DistillationLoss(chosen, weights)
        loss.build(own, teacher)
        _, values = loss(own, teacher, images)
        found = compute_gradient_shares(loss, values, model, 0.0)
        shares = {name: found[f"{name}_share"] for name in chosen}
        assert sum(shares.values()) == pytest.approx(1.0)
        assert (
            shares == pytest.approx({"one": 0.5, "other": 0.5})
            if "one" in chosen
            else shares["cut"] == 0 < min(shares["labels"], shares["maps"])
        )
        assert all(parameter.grad is None for parameter in model.parameters())


def test_a_cosine_says_whether_a_term_pulls_where_the_labels_pull() -> None:
    model, images = student(), batch()
    own, teacher = answers(model, images)
    loss = DistillationLoss(
        {"labels": Labels(factor=1.0), "distance": Distance(factor=1.0)},
        {"labels": 2.0, "distance": 1.0},
    )
    _, values = loss(own, teacher, images)
    label, distance = (
        torch.cat(
            [
                grad.flatten()
                for grad in torch.autograd.grad(
                    values[name], list(model.parameters()), retain_graph=True
                )
            ]
        )
        for name in ("labels", "distance")
    )
    found = compute_gradient_shares(loss, values, model, 0.0)
    assert found["distance_cosine"] == pytest.approx(
        float(label @ distance / label.norm() / distance.norm()), rel=1e-5
    )
    assert found["distance_share"] == pytest.approx(
        float(distance.norm() / (2 * label.norm() + distance.norm())), rel=1e-5
    )
    assert "labels_cosine" not in found


def test_a_training_tells_them_every_so_many_steps_and_ends_with_the_same_weights_bit_by_bit() -> (
    None
):
    ends = []
    for every, steps in ((None, []), (2, [1, 3, 5])):
        module = distillation(student=seeded(lambda: Net(drop=0.5)), gradient_share=every)
        torch.manual_seed(0)
        with silence_lightning():
            told = fitted(module, max_epochs=2, accumulate_grad_batches=2)
        looked = [row for row in told if "train/soft_target_share" in row]
        assert [row["step"] for row in looked] == steps
        for row in looked:
            assert row["train/soft_target_share"] + row[
                "train/cross_entropy_share"
            ] == pytest.approx(1.0)
            assert -1 <= row["train/soft_target_cosine"] <= 1
        ends.append(module.student.state_dict())
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
