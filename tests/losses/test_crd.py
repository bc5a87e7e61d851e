"""What the memory of CRD does; its value and gradient are in the golden cases."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kd_app.config import RequestError
from kd_app.losses.noise import draw_noise
from kd_app.models.outputs import Outputs
from tests.losses.golden_adapted import crd_of
from tests.losses.samples import batch, labels, make, normal
from tests.losses.test_golden import GOLDEN

IMAGES = 12


def outputs(seed: int, images: int = 6, width: int = 32) -> Outputs:
    return Outputs(embedding=normal(images, width, seed=seed, dtype=torch.float32))


def built(**changed: Any) -> Any:
    term = make("crd", **{"width": 8, "negatives": 20, **changed})
    term.images = torch.arange(100, 100 + 2 * IMAGES, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        term.build(outputs(1), outputs(2))
    return term


def of(numbers: list[int], target: list[int]) -> Any:
    made = batch(torch.tensor(target))
    made.index = torch.tensor(numbers)
    return made


def test_memory_normalizer_and_a_second_step_are_those_of_the_reference() -> None:
    x = GOLDEN.inputs("crd_repdistiller")
    term, ours, theirs = crd_of(x)
    given = of(x["in/idx"].long().tolist(), [0] * 8)
    term(ours, theirs, given)
    torch.testing.assert_close(
        term.partition, torch.stack((x["out/Z_v1"], x["out/Z_v2"])), rtol=1e-9, atol=0
    )
    torch.testing.assert_close(term.memory_s, x["out/memory_v1_after"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(term.memory_t, x["out/memory_v2_after"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(term(ours, theirs, given), x["out/loss_step2"], rtol=1e-9, atol=0)


def test_negatives_are_images_of_other_classes_and_of_those_all() -> None:
    term = built(negatives=2000)
    numbers = term.images.tolist()
    seen = of(numbers, [0] * 5 + [1] * 4 + [2] * 3)
    term.classes.copy_(seen.target)
    term.draw = lambda _, count: torch.rand(
        IMAGES, 2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    rows = torch.arange(IMAGES)
    drawn = term._draw_negatives(seen, rows, torch.ones(IMAGES, dtype=torch.bool))
    for row in range(IMAGES):
        assert set(drawn[row].tolist()) == {
            other for other in range(IMAGES) if seen.target[other] != seen.target[row]
        }


def test_where_all_images_are_of_one_class_all_are_negatives() -> None:
    term = built()
    term.classes.zero_()
    drawn = term._draw_negatives(
        of([100, 102], [0, 0]), torch.tensor([0, 1]), torch.ones(2, dtype=torch.bool)
    )
    assert drawn.min() >= 0
    assert drawn.max() < IMAGES


def test_only_rows_of_the_batch_move_and_none_in_evaluation() -> None:
    term, given = built(), of([100, 104, 106, 110, 120, 122], [0, 1, 2, 0, 1, 2])
    before = term.memory_s.clone()
    term.eval()(outputs(3), outputs(4), given)
    assert torch.equal(term.memory_s, before)
    term.train()(outputs(3), outputs(4), given)
    moved = (term.memory_s != before).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [0, 2, 3, 5, 10, 11]
    torch.testing.assert_close(term.memory_s[moved].norm(dim=1), torch.ones(6))
    assert term.classes[moved].tolist() == [0, 1, 2, 0, 1, 2]


def test_images_that_are_not_to_be_trained_on_and_vectors_that_are_not_finite_leave_no_trace() -> (
    None
):
    term, six = built(), [0, 1, 2, 0, 1, 2]
    before = {name: x.clone() for name, x in term.state_dict().items()}
    value = term(outputs(3), outputs(4), of([1, 3, 5, 7, 9, 999], six))
    assert value == 0
    broken = Outputs(embedding=torch.full((6, 32), torch.inf))
    term(broken, outputs(4), of([100, 104, 106, 110, 120, 122], six))
    assert torch.equal(term.memory_s, before["memory_s"])


def test_the_draw_belongs_to_image_and_step() -> None:
    given = labels(6)
    first: Tensor = draw_noise(given, 4)
    assert torch.equal(first, draw_noise(given, 4))
    given.progress = 0.5
    assert not torch.equal(first, draw_noise(given, 4))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (None, "do not number their images"),
        (torch.arange(300_000), r"300,000 images, which takes 307 MB"),
    ],
)
def test_images_without_a_number_or_too_many_of_them_are_refused(
    images: Tensor | None, words: str
) -> None:
    term = make("crd")
    term.images = images
    with pytest.raises(RequestError, match=words) as refused:
        term.build(outputs(1), outputs(2))
    assert "rkd, pkt or sp" in str(refused.value)
