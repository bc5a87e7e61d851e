import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_app.config import RequestError
from kd_app.models.outputs import Outputs
from tests.losses.samples import batch, gradient, labels, leaf, logits, make, normal

shapes = {"images": st.integers(1, 9), "classes": st.integers(2, 12), "seed": st.integers(0, 1000)}


@settings(max_examples=40)
@given(**shapes, smoothing=st.floats(0, 0.9), weighted=st.booleans())
def test_class_numbers_give_the_weighted_mean_of_the_smoothed_label(
    images: int, classes: int, seed: int, smoothing: float, weighted: bool
) -> None:
    z, target = normal(images, classes, seed=seed), labels(images, classes, seed).target
    weights = [1.0 + c for c in range(classes)] if weighted else [1.0] * classes
    w, shares = (
        torch.tensor(weights, dtype=z.dtype),
        (1 - smoothing) * F.one_hot(target, classes) + smoothing / classes,
    )
    expected = -(w * shares * z.log_softmax(1)).sum() / w[target].sum()
    result = make(
        "cross_entropy", smoothing=smoothing, class_weights=weights if weighted else None
    )(logits(z), Outputs(), batch(target))
    torch.testing.assert_close(result, expected)


@settings(max_examples=40)
@given(**shapes, smoothing=st.floats(0, 0.9), weighted=st.booleans())
def test_mixed_labels_give_the_mean_over_the_batch(
    images: int, classes: int, seed: int, smoothing: float, weighted: bool
) -> None:
    z, target = (
        normal(images, classes, seed=seed),
        normal(images, classes, seed=seed + 1).softmax(1),
    )
    weights = [1.0 + c for c in range(classes)] if weighted else None
    w = torch.tensor(weights or [1.0], dtype=z.dtype)
    expected = (
        -(w * ((1 - smoothing) * target + smoothing / classes) * z.log_softmax(1)).sum() / images
    )
    result = make("cross_entropy", smoothing=smoothing, class_weights=weights)(
        logits(z), Outputs(), batch(target)
    )
    torch.testing.assert_close(result, expected)


@settings(max_examples=20)
@given(**shapes)
def test_one_hot_shares_are_class_numbers(images: int, classes: int, seed: int) -> None:
    z, hard = normal(images, classes, seed=seed), labels(images, classes, seed)
    shares = batch(F.one_hot(hard.target, classes).float())
    torch.testing.assert_close(
        make("cross_entropy")(logits(z), Outputs(), shares),
        make("cross_entropy")(logits(z), Outputs(), hard),
    )


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0]])
@pytest.mark.parametrize("mixed", [True, False])
def test_images_without_a_label_do_not_count(mixed: bool, weights: list[float] | None) -> None:
    z, labeled = leaf(normal(4, 3, seed=1)), torch.tensor([True, False, True, False])
    target = normal(4, 3, seed=2).softmax(1) if mixed else torch.tensor([2, -1, 0, 99])
    term = make("cross_entropy", class_weights=weights, smoothing=0.1)
    value = term(logits(z), Outputs(), batch(target, labeled))
    assert torch.equal(value, term(logits(z[labeled]), Outputs(), batch(target[labeled])))
    assert torch.equal(gradient(value, z).any(dim=1), labeled)


@pytest.mark.parametrize("target", [torch.tensor([-1, -1]), torch.full((2, 3), torch.nan)])
def test_a_batch_without_a_label_gives_zero_and_keeps_the_graph(target: torch.Tensor) -> None:
    z = leaf(normal(2, 3, seed=1))
    value = make("cross_entropy", class_weights=[1.0, 2.0, 3.0])(
        logits(z), Outputs(), batch(target, torch.tensor([False, False]))
    )
    assert value == 0
    assert torch.equal(gradient(value, z), torch.zeros(2, 3, dtype=z.dtype))


def test_there_must_be_one_class_weight_per_class() -> None:
    term = make("cross_entropy", class_weights=[1.0, 2.0])
    with pytest.raises(RequestError, match="2 entries for 3 classes"):
        term.build(logits(normal(1, 3, seed=0)), Outputs())


@pytest.mark.parametrize(
    "wrong",
    [{"smoothing": 1.0}, {"smoothing": -0.1}, {"class_weights": [1.0, 0.0]}, {"class_weights": 3}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        make("cross_entropy", **wrong)


def test_class_weights_follow_the_term_to_another_device_and_stay_out_of_its_state() -> None:
    term = make("cross_entropy", class_weights=[1.0, 2.0]).to("meta")
    assert term.class_weights.device.type == "meta"
    assert not term.state_dict()
