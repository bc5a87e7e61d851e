"""Batches of which some images have no label: terms that read labels are a mean over
the others, all other terms over all images.
"""

import pytest
import torch

from kd_app.data.batch import Batch
from kd_app.models.outputs import Outputs
from tests.losses.samples import CLASSES, TERMS, batch, built, changed, class_of, leaf, pair

LABELED = torch.tensor([True, False, True, True, False])
TARGET = torch.tensor([0, 3, 1, 5, 2])
every_term = pytest.mark.parametrize("name", TERMS)
AS_FAR_AS_THERE_ARE = {"crd", "ofa", "hard_token", "soft_token"}
"""Terms that take all images, and of those with a label the label, too."""
one_way_or_the_other = pytest.mark.parametrize(
    "name", [name for name in TERMS if name not in AS_FAR_AS_THERE_ARE]
)


def hidden(labeled: torch.Tensor) -> Batch:
    """As the loader gives it: no class number where there is no label."""
    return batch(torch.where(labeled, TARGET, -1), labeled)


def rows(outputs: Outputs, which: torch.Tensor) -> Outputs:
    return changed(outputs, lambda tensor: tensor[which])


@one_way_or_the_other
def test_a_term_that_reads_labels_is_its_mean_over_the_labeled_images_and_any_other_over_all(
    name: str,
) -> None:
    student, teacher = pair(term=name)
    found = built(name, student, teacher)(student, teacher, hidden(LABELED))
    expected = (
        built(name, student, teacher)(
            rows(student, LABELED), rows(teacher, LABELED), batch(TARGET[LABELED])
        )
        if class_of(name).uses_labels
        else built(name, student, teacher)(student, teacher, batch(TARGET))
    )
    torch.testing.assert_close(found, expected)


@every_term
def test_a_batch_without_any_label_gives_zero_for_terms_that_read_labels_and_a_gradient_all_the_same(
    name: str,
) -> None:
    student, teacher = pair(term=name)
    term = built(name, student, teacher)
    trained = changed(student, leaf)
    value = term(trained, teacher, hidden(torch.zeros(5, dtype=torch.bool)))
    assert value.isfinite()
    assert value.requires_grad
    assert (value.item() == 0) is class_of(name).uses_labels


@one_way_or_the_other
def test_terms_that_do_not_say_that_they_read_labels_give_the_same_for_all_labels(
    name: str,
) -> None:
    student, teacher = pair(term=name)
    first, second = (
        built(name, student, teacher)(student, teacher, batch((TARGET + shift) % CLASSES))
        for shift in (0, 1)
    )
    assert torch.equal(first, second) is not class_of(name).uses_labels


@pytest.mark.parametrize("name", sorted(AS_FAR_AS_THERE_ARE))
def test_terms_that_take_all_images_listen_to_the_labels_that_there_are(name: str) -> None:
    student, teacher = pair(term=name)
    some = built(name, student, teacher)(student, teacher, hidden(LABELED))
    none = built(name, student, teacher)(student, teacher, hidden(torch.zeros(5, dtype=torch.bool)))
    other = built(name, student, teacher)(
        student, teacher, batch(torch.where(LABELED, TARGET.flip(0), -1), LABELED)
    )
    assert some.isfinite()
    assert not torch.equal(some, none)
    assert not torch.equal(some, other)
