"""Batches with unlabeled images: terms that read labels are a mean over the labeled
images, other terms over all images.
"""

import pytest
import torch

from kd_app.data.batch import Batch
from kd_app.models.outputs import Outputs
from tests.losses.samples import (
    CLASSES,
    TERMS,
    batch,
    build_term,
    class_of,
    leaf,
    map_tensors,
    pair,
)

LABELED = torch.tensor([True, False, True, True, False])
TARGET = torch.tensor([0, 3, 1, 5, 2])
every_term = pytest.mark.parametrize("name", TERMS)
AS_FAR_AS_THERE_ARE = {"crd", "ofa", "hard_token", "soft_token"}
"""Terms on all images that also use available labels."""
one_way_or_the_other = pytest.mark.parametrize(
    "name", [name for name in TERMS if name not in AS_FAR_AS_THERE_ARE]
)


def hide_labels(labeled: torch.Tensor) -> Batch:
    """Return a batch like the loader's: no class number for an unlabeled image."""
    return batch(torch.where(labeled, TARGET, -1), labeled)


def rows(outputs: Outputs, which: torch.Tensor) -> Outputs:
    return map_tensors(outputs, lambda tensor: tensor[which])


@one_way_or_the_other
def test_a_term_that_reads_labels_is_its_mean_over_the_labeled_images_and_any_other_over_all(
    name: str,
) -> None:
    student, teacher = pair(term=name)
    result = build_term(name, student, teacher)(student, teacher, hide_labels(LABELED))
    expected = (
        build_term(name, student, teacher)(
            rows(student, LABELED), rows(teacher, LABELED), batch(TARGET[LABELED])
        )
        if class_of(name).uses_labels
        else build_term(name, student, teacher)(student, teacher, batch(TARGET))
    )
    torch.testing.assert_close(result, expected)


@every_term
def test_a_batch_without_labels_gives_zero_with_a_gradient(
    name: str,
) -> None:
    student, teacher = pair(term=name)
    term = build_term(name, student, teacher)
    trained = map_tensors(student, leaf)
    value = term(trained, teacher, hide_labels(torch.zeros(5, dtype=torch.bool)))
    assert value.isfinite()
    assert value.requires_grad
    assert (value.item() == 0) is class_of(name).uses_labels


@one_way_or_the_other
def test_other_terms_do_not_depend_on_labels(
    name: str,
) -> None:
    student, teacher = pair(term=name)
    first, second = (
        build_term(name, student, teacher)(student, teacher, batch((TARGET + shift) % CLASSES))
        for shift in (0, 1)
    )
    assert torch.equal(first, second) is not class_of(name).uses_labels


@pytest.mark.parametrize("name", sorted(AS_FAR_AS_THERE_ARE))
def test_terms_on_all_images_use_the_available_labels(name: str) -> None:
    student, teacher = pair(term=name)
    some = build_term(name, student, teacher)(student, teacher, hide_labels(LABELED))
    none = build_term(name, student, teacher)(
        student, teacher, hide_labels(torch.zeros(5, dtype=torch.bool))
    )
    other = build_term(name, student, teacher)(
        student, teacher, batch(torch.where(LABELED, TARGET.flip(0), -1), LABELED)
    )
    assert some.isfinite()
    assert not torch.equal(some, none)
    assert not torch.equal(some, other)
