"""The weighted sum of the loss terms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_app.config import RequestError
from kd_app.losses.crd import CRD
from kd_app.losses.cross_entropy import CrossEntropy
from kd_app.losses.distillation_loss import DistillationLoss
from kd_app.losses.soft_target import SoftTarget
from kd_app.losses.ttm import TTM
from kd_app.models.outputs import Outputs
from tests.training.small_terms import (
    Adapted,
    Distance,
    Labels,
    answers,
    batch,
    draw_normal,
    student,
)

WEIGHTS = st.floats(0, 100)


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(WEIGHTS, st.floats(-10, 10)), min_size=1)
)
def test_the_loss_is_the_sum_of_weight_times_term_and_each_term_has_its_name(
    chosen: dict[str, tuple[float, float]],
) -> None:
    loss = DistillationLoss(
        {name: Labels(factor=factor) for name, (_, factor) in chosen.items()},
        {name: weight for name, (weight, _) in chosen.items()},
    )
    logits = draw_normal(6, 3).double()
    total, values = loss(Outputs(logits=logits), Outputs(), batch())
    mean = logits.mean().item()
    assert list(values) == list(chosen)
    assert {name: value.item() for name, value in values.items()} == pytest.approx(
        {name: factor * mean for name, (_, factor) in chosen.items()}
    )
    assert total.item() == pytest.approx(
        sum(weight * factor * mean for weight, factor in chosen.values()), abs=1e-9
    )


def test_hintons_loss_follows_the_formula_of_the_paper() -> None:
    loss = DistillationLoss(
        {
            "cross_entropy": CrossEntropy(smoothing=0.0, class_weights=None),
            "soft_target": SoftTarget(temperature=4.0, standardize=False),
        },
        {"cross_entropy": 0.1, "soft_target": 0.9},
    )
    model, images = student(), batch()
    outputs, teacher = answers(model, images)
    assert outputs.logits is not None
    assert teacher.logits is not None
    p, q = (torch.softmax(logits / 4, dim=1) for logits in (teacher.logits, outputs.logits))
    labels = -torch.log_softmax(outputs.logits, dim=1)[torch.arange(6), images.target].mean()
    expected = 0.1 * labels + 0.9 * 16 * (p * (p.log() - q.log())).sum(dim=1).mean()
    torch.testing.assert_close(loss(outputs, teacher, images)[0], expected)


def test_at_least_one_term_is_needed() -> None:
    with pytest.raises(RequestError, match="loss="):
        DistillationLoss({}, {})


def test_only_the_fields_that_terms_read_are_requested() -> None:
    labels, distance, adapted = Labels(factor=1.0), Distance(factor=1.0), Adapted(reaches=True)
    supervised = DistillationLoss({"labels": labels}, {"labels": 1.0})
    assert (set(supervised.reads), set(supervised.teacher_reads)) == ({"logits"}, set())
    assert (supervised.needs_teacher, supervised.attention_blocks) == (False, 1)
    both = DistillationLoss({"labels": labels, "adapted": adapted}, {"labels": 1.0, "adapted": 1.0})
    assert (set(both.reads), set(both.teacher_reads)) == ({"logits", "embedding"}, {"embedding"})
    assert (both.needs_teacher, both.attention_blocks) == (True, 3)
    assert DistillationLoss({"distance": distance}, {"distance": 1.0}).teacher_reads == {"logits"}


def test_adapters_are_trained_and_saved_with_the_loss() -> None:
    loss = DistillationLoss({"adapted": Adapted(reaches=True)}, {"adapted": 1.0})
    assert list(loss.parameters()) == []
    outputs, teacher = answers(student(), batch())
    loss.build(outputs, teacher)
    loss(outputs, teacher, batch())[0].backward()
    assert list(loss.state_dict()) == [
        "terms.adapted.adapter.weight",
        "terms.adapted.adapter.bias",
    ]
    assert all(
        parameter.grad is not None and bool(parameter.grad.any()) for parameter in loss.parameters()
    )


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_are_compared_in_full_precision(kind: torch.dtype) -> None:
    """Fault 11 of other toolkits: non-finite gradients at a low temperature or in half
    precision.
    """
    logits = (30 * draw_normal(6, 3)).to(kind).requires_grad_()
    loss = DistillationLoss(
        {"soft_target": SoftTarget(temperature=0.05, standardize=False)}, {"soft_target": 1.0}
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, values = loss(
            Outputs(logits=logits),
            Outputs(logits=(30 * draw_normal(6, 3, seed=1)).to(kind)),
            batch(),
        )
    total.backward()
    assert total.dtype == values["soft_target"].dtype == torch.float32
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert bool(logits.grad.any())


def test_under_autocast_no_adapter_computes_in_half_precision() -> None:
    loss = DistillationLoss({"adapted": Adapted(reaches=True)}, {"adapted": 1.0})
    model, images = student(), batch()
    outputs, teacher = answers(model, images)
    loss.build(outputs, teacher)
    plain = loss(outputs, teacher, images)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(outputs, teacher, images)[0], plain)


def test_double_precision_stays() -> None:
    loss = DistillationLoss({"distance": Distance(factor=1.0)}, {"distance": 1.0})
    assert (
        loss(
            Outputs(logits=draw_normal(6, 3).double()),
            Outputs(logits=draw_normal(6, 3).double()),
            batch(),
        )[0].dtype
        == torch.float64
    )


def test_the_label_loss_is_the_weighted_sum_of_the_terms_without_a_teacher() -> None:
    terms = {
        "labels": Labels(factor=1.0),
        "more": Labels(factor=0.5),
        "distance": Distance(factor=1.0),
    }
    loss = DistillationLoss(terms, {"labels": 2.0, "more": 4.0, "distance": 1.0})
    outputs, teacher = answers(student(), batch())
    _, values = loss(outputs, teacher, batch())
    assert outputs.logits is not None
    label_loss = loss.compute_label_loss(values, progress=0.5)
    assert label_loss is not None
    torch.testing.assert_close(label_loss, 4 * outputs.logits.mean())


@pytest.mark.parametrize("term", [Labels(factor=1.0), Distance(factor=1.0)])
def test_there_is_no_label_loss_where_all_or_no_terms_read_a_teacher(
    term: Labels | Distance,
) -> None:
    loss = DistillationLoss({"only": term}, {"only": 1.0})
    _, values = loss(*answers(student(), batch()), batch())
    assert loss.compute_label_loss(values, progress=0.5) is None


def test_the_label_temperatures_are_those_at_which_terms_soften_class_probabilities() -> None:
    """CRD's temperature divides cosines; TTM softens the teacher by 1 / power."""
    terms = {
        "labels": CrossEntropy(smoothing=0.0, class_weights=None),
        "crd": CRD(width=4, negatives=2, temperature=0.07, momentum=0.5, most_images=10),
        "ttm": TTM(power=0.1, standardize=False),
        "soft_target": SoftTarget(temperature=4.0, standardize=False),
    }
    loss = DistillationLoss(terms, dict.fromkeys(terms, 1.0))
    assert loss.label_temperatures == [10.0, 4.0]
