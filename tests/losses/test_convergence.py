"""Every term with a teacher moves a student onto the teacher. New methods are covered
automatically.
"""

from collections.abc import Callable
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_app.models.outputs import Outputs
from tests.losses.samples import (
    TERMS,
    adapt_outputs,
    batch,
    build_term,
    class_of,
    labels,
    leaf,
    map_tensors,
    model_outputs,
    pair,
    tensors,
)

IMAGES = 5
STEPS = 600
DEEP = {
    *("crd", "ickd", "masked_generation", "ofa", "review"),
    *("simkd", "variational_information", "vicreg", "vit_features"),
}
"""Terms with many steps, or with large adapters, whose steps take long. Their gradients
are tested against golden values, and one step down the gradient lowers each term.
"""
LOGARITHM = "simple_recipe"
"""The logarithm of a distance has no finite minimum: a separate test."""
QUEUE = "seed_queue"
"""Every call fills the queue, so that values of two calls can't be compared. One step
down its gradient lowers the term in test_loss_terms.
"""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in DEEP else [])
        for name in TERMS
        if class_of(name).needs_teacher and name not in (LOGARITHM, QUEUE)
    ],
)
def test_it_moves_a_student_onto_its_teacher(name: str) -> None:
    """The value comes within 10 % of the value for student = teacher. With adapters,
    the lowest value over the adapters counts.
    """
    torch.manual_seed(0)  # the adapters' first weights
    teacher = pair(IMAGES, term=name)[1]
    sizes = tuple(
        x.shape[-1] for x in teacher.features
    )  # maps of fewer cells could not be like the teacher's
    student = adapt_outputs(name, model_outputs(seed=100, width=32, images=IMAGES, sizes=sizes))
    assert teacher.logits is not None
    right = batch(teacher.logits.argmax(dim=1))
    copied = _freeze_variances(build_term(name, teacher, teacher))
    aim = _lowest(
        lambda: copied(teacher, teacher, right), [p for p in copied.parameters() if p.requires_grad]
    )
    free = map_tensors(student, leaf)
    term = _freeze_variances(build_term(name, free, teacher))
    start = term(free, teacher, right).item()
    assert (
        start > aim > -1e-9
    )  # a distance: where the sign is wrong, adapters lower the aim below 0
    assert _comes_within(
        lambda: term(free, teacher, right), _train(free, term), aim=aim, gap=0.1 * (start - aim)
    )


def test_the_logarithm_of_a_distance_reduces_the_distance_to_a_tenth() -> None:
    """The linear map is fixed at the one for student = teacher, so that only the
    student moves.
    """
    teacher, usual = (model_outputs(seed=seed, width=32, images=IMAGES) for seed in (200, 100))
    student = map_tensors(usual, leaf)
    term = build_term(LOGARITHM, student, teacher)
    with torch.no_grad():
        term.embed.weight.copy_(torch.eye(32))
        term.embed.bias.zero_()
    aim = 0.1 * _distance(student, teacher)
    optimizer = torch.optim.Adam(tensors(student, term.reads), lr=0.02)
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.autograd.backward(term(student, teacher, labels(IMAGES)))
        optimizer.step()
        if _distance(student, teacher) <= aim:
            return
    pytest.fail(f"{_distance(student, teacher):.3g} is left, expected {aim:.3g}")


def _distance(student: Outputs, teacher: Outputs) -> float:
    """Return the distance of the embeddings, with each feature at mean 0 and variance 1
    over the images.
    """
    ours, theirs = (
        (x - x.mean(0)) / x.std(0, correction=0)
        for outputs in (student, teacher)
        if (x := outputs.embedding) is not None
    )
    return (ours - theirs).square().sum().item()


def _freeze_variances(term: torch.nn.Module) -> torch.nn.Module:
    """Freeze trained variances at their initial value: the logarithm of a variance has
    no lower bound.
    """
    for name, parameter in term.named_parameters():
        if name.endswith("log_scale"):
            parameter.requires_grad_(False)
    return term


def _train(outputs: Outputs, term: torch.nn.Module) -> list[Tensor]:
    reads: Any = term.reads
    return [*tensors(outputs, reads), *(p for p in term.parameters() if p.requires_grad)]


def _lowest(value: Callable[[], Tensor], adapters: list[Tensor]) -> float:
    """Return the value, or with adapters the lowest value that training the adapters
    reaches until a hundred steps lower it by less than a hundredth.
    """
    if not adapters:
        return value().item()
    values = list[float]()
    optimizer = torch.optim.Adam(adapters, lr=0.02)
    for step in range(STEPS):
        if step and step % 100 == 0 and min(values[-100:]) > 0.99 * min(values[:-100], default=inf):
            break
        optimizer.zero_grad()
        loss = value()
        if not loss.requires_grad:
            return loss.item()
        torch.autograd.backward(loss)
        optimizer.step()
        values.append(loss.item())
    return min(values)


def _comes_within(
    value: Callable[[], Tensor], trained: list[Tensor], *, aim: float, gap: float
) -> bool:
    """Whether Adam's steps bring the value within `gap` of `aim`."""
    optimizer = torch.optim.Adam(trained, lr=0.02)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = value()
        if abs(loss.item() - aim) <= gap:
            return True
        torch.autograd.backward(loss)
        optimizer.step()
    return False
