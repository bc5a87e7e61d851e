"""What each loss term has of the student's gradient, on request."""

import pytest
import torch

from kd_app.losses.soft_target import SoftTarget
from kd_app.training.fit import quiet
from kd_app.training.terms import WeightedTerms
from tests.training.small_parts import Net, distillation, seeded
from tests.training.test_module import fitted
from tests.training.test_terms import Adapted, Cut, Distance, Labels, answers, batch, student


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
        summed = WeightedTerms(chosen, weights)
        summed.build(own, teacher)
        _, values = summed(own, teacher, images)
        found = summed.gradients(values, model, 0.0)
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
    toward = WeightedTerms(
        {"labels": Labels(factor=1.0), "distance": Distance(factor=1.0)},
        {"labels": 2.0, "distance": 1.0},
    )
    _, values = toward(own, teacher, images)
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
    found = toward.gradients(values, model, 0.0)
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
        with quiet():
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
