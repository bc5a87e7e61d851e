"""The memory of CRD. Value and gradient are in the golden cases."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kd_app.config import RequestError
from kd_app.losses.noise import draw_noise
from kd_app.models.outputs import Outputs
from tests.losses.golden_adapted import build_crd_case
from tests.losses.samples import batch, labels, make, normal
from tests.losses.test_golden import GOLDEN

IMAGES = 12


def outputs(seed: int, images: int = 6, width: int = 32) -> Outputs:
    return Outputs(embedding=normal(images, width, seed=seed, dtype=torch.float32))


def build_crd(**changed: Any) -> Any:
    term = make("crd", **{"width": 8, "negatives": 20, **changed})
    term.images = torch.arange(100, 100 + 2 * IMAGES, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        term.build(outputs(1), outputs(2))
    return term


def make_batch(numbers: list[int], target: list[int]) -> Any:
    result = batch(torch.tensor(target))
    result.index = torch.tensor(numbers)
    return result


def test_memory_normalizer_and_a_second_step_are_those_of_the_reference() -> None:
    x = GOLDEN.inputs("crd_repdistiller")
    term, ours, theirs = build_crd_case(x)
    numbered = make_batch(x["in/idx"].long().tolist(), [0] * 8)
    term(ours, theirs, numbered)
    torch.testing.assert_close(
        term.partition, torch.stack((x["out/Z_v1"], x["out/Z_v2"])), rtol=1e-9, atol=0
    )
    torch.testing.assert_close(term.memory_s, x["out/memory_v1_after"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(term.memory_t, x["out/memory_v2_after"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(term(ours, theirs, numbered), x["out/loss_step2"], rtol=1e-9, atol=0)


def test_negatives_are_images_of_other_classes_and_of_those_all() -> None:
    term = build_crd(negatives=2000)
    numbers = term.images.tolist()
    images = make_batch(numbers, [0] * 5 + [1] * 4 + [2] * 3)
    term.classes.copy_(images.target)
    term.draw = lambda _, count: torch.rand(
        IMAGES, 2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    rows = torch.arange(IMAGES)
    negatives = term._draw_negatives(images, rows, torch.ones(IMAGES, dtype=torch.bool))
    for row in range(IMAGES):
        assert set(negatives[row].tolist()) == {
            other for other in range(IMAGES) if images.target[other] != images.target[row]
        }


def test_where_all_images_are_of_one_class_all_are_negatives() -> None:
    term = build_crd()
    term.classes.zero_()
    negatives = term._draw_negatives(
        make_batch([100, 102], [0, 0]), torch.tensor([0, 1]), torch.ones(2, dtype=torch.bool)
    )
    assert negatives.min() >= 0
    assert negatives.max() < IMAGES


def test_only_rows_of_the_batch_move_and_none_in_evaluation() -> None:
    term, numbered = build_crd(), make_batch([100, 104, 106, 110, 120, 122], [0, 1, 2, 0, 1, 2])
    before = term.memory_s.clone()
    term.eval()(outputs(3), outputs(4), numbered)
    assert torch.equal(term.memory_s, before)
    term.train()(outputs(3), outputs(4), numbered)
    moved = (term.memory_s != before).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [0, 2, 3, 5, 10, 11]
    torch.testing.assert_close(term.memory_s[moved].norm(dim=1), torch.ones(6))
    assert term.classes[moved].tolist() == [0, 1, 2, 0, 1, 2]


def test_unknown_images_and_non_finite_vectors_do_not_change_the_memory() -> None:
    term, six = build_crd(), [0, 1, 2, 0, 1, 2]
    before = {name: x.clone() for name, x in term.state_dict().items()}
    value = term(outputs(3), outputs(4), make_batch([1, 3, 5, 7, 9, 999], six))
    assert value == 0
    broken = Outputs(embedding=torch.full((6, 32), torch.inf))
    term(broken, outputs(4), make_batch([100, 104, 106, 110, 120, 122], six))
    assert torch.equal(term.memory_s, before["memory_s"])


def test_the_draw_depends_on_image_and_step() -> None:
    numbered = labels(6)
    first: Tensor = draw_noise(numbered, 4)
    assert torch.equal(first, draw_noise(numbered, 4))
    numbered.progress = 0.5
    assert not torch.equal(first, draw_noise(numbered, 4))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "have no image indices"),
        (torch.arange(300_000), r"300,000 images \(307 MB\)"),
    ],
)
def test_images_without_an_index_or_too_many_images_are_refused(
    images: Tensor | None, message: str
) -> None:
    term = make("crd")
    term.images = images
    with pytest.raises(RequestError, match=message) as raised:
        term.build(outputs(1), outputs(2))
    assert "rkd, pkt or sp" in str(raised.value)
