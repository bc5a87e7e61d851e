"""Diagnostics of single loss terms: faults in the first steps, and shares of the
gradient.
"""

import pytest
import torch
from torch import Tensor, nn

from kd_app.config import RunError
from kd_app.losses.base import LossTerm
from kd_app.losses.distillation_loss import DistillationLoss
from kd_app.losses.soft_target import SoftTarget
from kd_app.training.diagnostics import (
    check_terms,
    compute_gradient_norms,
    compute_gradient_shares,
    find_faults,
)
from kd_app.training.trainer import silence_lightning
from tests.training.small_parts import Net, build_seeded, distillation
from tests.training.small_terms import Adapted, Cut, Distance, Flat, Labels, answers, batch, student
from tests.training.test_module import fit_rows


def run_checks(
    loss: DistillationLoss, model: nn.Linear | None = None, *, agree: bool = False
) -> Tensor:
    """Check the terms of one step and return the loss."""
    model, images = model or student(), batch()
    outputs, teacher = answers(model, images)
    if agree:
        assert outputs.logits is not None
        teacher.logits = outputs.logits.detach()
    loss.build(outputs, teacher)
    total, values = loss(outputs, teacher, images)
    check_terms(loss, values, model, images)
    assert isinstance(total, Tensor)
    return total


def test_valid_terms_pass_and_the_graph_is_kept() -> None:
    model = student()
    loss = DistillationLoss(
        {
            "labels": Labels(factor=1.0),
            "distance": Distance(factor=1.0),
            "adapted": Adapted(reaches=True),
        },
        {"labels": 1.0, "distance": 1.0, "adapted": 1.0},
    )
    total = run_checks(loss, model)
    assert model.weight.grad is None
    total.backward()
    assert model.weight.grad is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("term", [Labels, Distance])
def test_a_term_that_is_not_finite_ends_the_run_by_name(
    term: type[Labels | Distance], value: float
) -> None:
    broken = term(factor=1.0)
    broken.factor = value
    loss = DistillationLoss(
        {"fine": Distance(factor=1.0), "broken": broken}, {"fine": 1.0, "broken": 1.0}
    )
    with pytest.raises(RunError, match=r"The loss term broken is -?(nan|inf)"):
        run_checks(loss)


def test_pixels_that_are_not_finite_are_named_as_the_reason() -> None:
    images = batch()
    images.image[1, 0] = float("nan")
    loss = DistillationLoss({"labels": Labels(factor=1.0)}, {"labels": 1.0})
    (fault,) = find_faults(loss, {"labels": torch.tensor(float("nan"))}, student(), images)
    assert f"1 of {len(images)} images of the batch have NaN or infinite pixels" in fault.text


def test_a_distillation_term_that_is_exactly_zero_ends_the_run_by_name() -> None:
    with pytest.raises(RunError, match="soft_target is exactly zero"):
        run_checks(
            DistillationLoss(
                {"soft_target": SoftTarget(temperature=1.0, standardize=False)},
                {"soft_target": 1.0},
            ),
            agree=True,
        )


def test_a_label_term_may_be_zero() -> None:
    run_checks(
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
        run_checks(
            DistillationLoss(
                {"distance": Distance(factor=1.0), "idle": term}, {"distance": 1.0, "idle": 1.0}
            )
        )


def test_a_term_of_weight_zero_is_not_checked() -> None:
    run_checks(
        DistillationLoss(
            {"distance": Distance(factor=1.0), "watched": Cut(factor=1.0)},
            {"distance": 1.0, "watched": 0.0},
        )
    )


def test_a_frozen_part_of_the_student_is_no_missing_gradient() -> None:
    model = student()
    model.weight.requires_grad_(False)
    run_checks(DistillationLoss({"distance": Distance(factor=1.0)}, {"distance": 1.0}), model)


def test_every_fault_is_reported_with_its_kind() -> None:
    wild = Labels(factor=1.0)
    wild.factor = float("nan")
    terms: dict[str, LossTerm] = {
        "fine": Distance(factor=1.0),
        "wild": wild,
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


def test_shares_sum_to_1_and_two_equal_terms_have_half_each() -> None:
    model, images = student(), batch()
    outputs, teacher = answers(model, images)
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
        loss.build(outputs, teacher)
        _, values = loss(outputs, teacher, images)
        measured = compute_gradient_shares(loss, values, model, 0.0)
        shares = {name: measured[f"{name}_share"] for name in chosen}
        assert sum(shares.values()) == pytest.approx(1.0)
        assert (
            shares == pytest.approx({"one": 0.5, "other": 0.5})
            if "one" in chosen
            else shares["cut"] == 0 < min(shares["labels"], shares["maps"])
        )
        assert all(parameter.grad is None for parameter in model.parameters())


def test_the_cosine_compares_a_term_with_the_labels() -> None:
    model, images = student(), batch()
    outputs, teacher = answers(model, images)
    loss = DistillationLoss(
        {"labels": Labels(factor=1.0), "distance": Distance(factor=1.0)},
        {"labels": 2.0, "distance": 1.0},
    )
    _, values = loss(outputs, teacher, images)
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
    measured = compute_gradient_shares(loss, values, model, 0.0)
    assert measured["distance_cosine"] == pytest.approx(
        float(label @ distance / label.norm() / distance.norm()), rel=1e-5
    )
    assert measured["distance_share"] == pytest.approx(
        float(distance.norm() / (2 * label.norm() + distance.norm())), rel=1e-5
    )
    assert "labels_cosine" not in measured


def test_a_training_logs_shares_and_ends_with_bit_identical_weights() -> None:
    ends = []
    for every, steps in ((None, []), (2, [1, 3, 5])):
        module = distillation(student=build_seeded(lambda: Net(drop=0.5)), gradient_share=every)
        torch.manual_seed(0)
        with silence_lightning():
            rows = fit_rows(module, max_epochs=2, accumulate_grad_batches=2)
        share_rows = [row for row in rows if "train/soft_target_share" in row]
        assert [row["step"] for row in share_rows] == steps
        for row in share_rows:
            assert row["train/soft_target_share"] + row[
                "train/cross_entropy_share"
            ] == pytest.approx(1.0)
            assert -1 <= row["train/soft_target_cosine"] <= 1
        ends.append(module.student.state_dict())
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
