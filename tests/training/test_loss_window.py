"""The losses since the last logged point."""

import math

import torch

from kd_app.training.loss_window import LossWindow


def window(*losses: float) -> LossWindow:
    """Batches of two images; the first term is the loss, the second term is 1."""
    losses_window = LossWindow(["first", "second"])
    for number, loss in enumerate(losses):
        value = torch.tensor(loss)
        losses_window.append(
            value, {"first": value, "second": torch.tensor(1.0)}, torch.tensor([number, -1])
        )
    return losses_window


def test_means_exclude_non_finite_batches() -> None:
    assert window(1.0, 3.0).compute_finite_means() == {"loss": 2.0, "first": 2.0, "second": 1.0}
    assert window(1.0, math.nan).compute_finite_means() == {
        "loss": 1.0,
        "first": 1.0,
        "second": 1.0,
    }
    assert window(math.inf).compute_finite_means() == {}


def test_the_first_non_finite_term_is_reported_with_its_images() -> None:
    broken = window(1.0, math.nan, math.inf, 1.0).find_first_nonfinite()
    assert (broken.term, broken.batches_after, broken.images) == ("first", 2, [1])


def test_an_empty_window_is_finite() -> None:
    assert window().is_finite()
    assert window(1.0).is_finite()
    assert not window(1.0, math.nan).is_finite()


def test_a_restored_window_has_the_same_means() -> None:
    saved, restored = window(1.0, 5.0), window()
    restored.load_state_dict(saved.state_dict(), torch.device("cpu"))
    saved.clear()
    assert (len(saved), len(restored)) == (0, 2)
    assert restored.compute_finite_means()["loss"] == 3.0
