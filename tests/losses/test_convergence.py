"""Every term that reads a teacher can pull a student onto it; a new method is covered
by being there.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kd_app.models.outputs import Outputs
from tests.losses.samples import (
    TERMS,
    batch,
    built,
    changed,
    class_of,
    fit_for,
    labels,
    leaf,
    model_outputs,
    pair,
    tensors,
)

IMAGES = 5
STEPS = 600
LOGARITHM = "simple_recipe"
"""The logarithm of a distance has no value at student = teacher to come near to: the
distance itself is looked at, below.
"""


@pytest.mark.parametrize(
    "name", [name for name in TERMS if class_of(name).needs_teacher and name != LOGARITHM]
)
def test_it_pulls_a_student_onto_its_teacher(name: str) -> None:
    """It comes within 10 % of what it says of a student that is the teacher; with a
    wrong sign it would go away from there.
    """
    teacher = pair(IMAGES, term=name)[1]
    sizes = tuple(
        x.shape[-1] for x in teacher.features
    )  # maps of fewer cells could not be like the teacher's
    student = fit_for(name, model_outputs(seed=100, width=32, images=IMAGES, sizes=sizes))
    assert teacher.logits is not None
    right = batch(teacher.logits.argmax(dim=1))
    copied = _bounded(built(name, teacher, teacher))
    aim = _lowest(
        lambda: copied(teacher, teacher, right), [p for p in copied.parameters() if p.requires_grad]
    )
    free = changed(student, leaf)
    term = _bounded(built(name, free, teacher))
    start = term(free, teacher, right).item()
    assert (
        start > aim > -1e-9
    )  # a distance: where the sign is wrong, adapters lower the aim below 0
    assert _comes_within(
        lambda: term(free, teacher, right), _trained(free, term), aim=aim, gap=0.1 * (start - aim)
    )


def test_the_logarithm_of_a_distance_pulls_the_student_until_a_tenth_of_the_distance_is_left() -> (
    None
):
    """The linear map is held at the one that fits where the student is the teacher, and
    the distance is computed here.
    """
    teacher, usual = (model_outputs(seed=seed, width=32, images=IMAGES) for seed in (200, 100))
    student = changed(usual, leaf)
    term = built(LOGARITHM, student, teacher)
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
    """Of the embeddings, each feature with mean 0 and variance 1 over the images."""
    ours, theirs = (
        (x - x.mean(0)) / x.std(0, correction=0)
        for outputs in (student, teacher)
        if (x := outputs.embedding) is not None
    )
    return (ours - theirs).square().sum().item()


def _bounded(term: torch.nn.Module) -> torch.nn.Module:
    """The term with trained variances held as they start: the logarithm of one falls
    for ever where nothing is left to explain.
    """
    for name, parameter in term.named_parameters():
        if name.endswith("log_scale"):
            parameter.requires_grad_(False)
    return term


def _trained(outputs: Outputs, term: torch.nn.Module) -> list[Tensor]:
    return [*tensors(outputs, term.reads), *(p for p in term.parameters() if p.requires_grad)]  # type: ignore[arg-type]


def _lowest(value: Callable[[], Tensor], adapters: list[Tensor]) -> float:
    """The value; where there are adapters, the lowest that training them gives."""
    if not adapters:
        return value().item()
    found = []
    optimizer = torch.optim.Adam(adapters, lr=0.02)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = value()
        if not loss.requires_grad:
            return loss.item()
        torch.autograd.backward(loss)
        optimizer.step()
        found.append(loss.item())
    return min(found)


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
