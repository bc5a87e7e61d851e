"""Every term that reads a teacher can pull a student onto it; a new method is covered by being there."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kd_app.models.outputs import Outputs
from tests.losses.samples import TERMS, batch, built, changed, class_of, fit_for, leaf, model_outputs, pair, tensors

IMAGES = 5
STEPS = 600
LOGARITHMS = {"simple_recipe", "variational_information"}
"""They have no value at student = teacher to come near to: the logarithm of a distance, or of a variance, falls for ever. Not shown here."""


@pytest.mark.parametrize("name", [name for name in TERMS if class_of(name).needs_teacher and name not in LOGARITHMS])
def test_it_pulls_a_student_onto_its_teacher(name: str) -> None:
    """It comes within 10 % of what it says of a student that is the teacher; with a wrong sign it would go away from there."""
    teacher = pair(IMAGES, term=name)[1]
    sizes = tuple(x.shape[-1] for x in teacher.features)  # maps of fewer cells could not be like the teacher's
    student = fit_for(name, model_outputs(seed=100, width=32, images=IMAGES, sizes=sizes))
    assert teacher.logits is not None
    right = batch(teacher.logits.argmax(dim=1))
    copied = built(name, teacher, teacher)
    aim = _lowest(lambda: copied(teacher, teacher, right), list(copied.parameters()))
    free = changed(student, leaf)
    term = built(name, free, teacher)
    start = term(free, teacher, right).item()
    assert start > aim > -1e-9  # a distance: where the sign is wrong, adapters lower the aim below 0
    assert _comes_within(lambda: term(free, teacher, right), _trained(free, term), aim=aim, gap=0.1 * (start - aim))


def _trained(outputs: Outputs, term: torch.nn.Module) -> list[Tensor]:
    return [*tensors(outputs, term.reads), *term.parameters()]  # type: ignore[arg-type]


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


def _comes_within(value: Callable[[], Tensor], trained: list[Tensor], *, aim: float, gap: float) -> bool:
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
