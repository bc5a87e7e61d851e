import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from kd_app.config import RequestError
from tests.losses.samples import gradient, labels, leaf, logits, make, normal

shapes = {
    "images": st.integers(1, 9),
    "classes": st.integers(1, 40),
    "seed": st.integers(0, 1000),
    "temperature": st.floats(0.1, 20),
}


def soft(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    value: torch.Tensor = make("soft_target", temperature=temperature)(
        logits(student), logits(teacher), labels(len(student))
    )
    return value


@settings(max_examples=40)
@given(**shapes)
def test_it_is_the_formula(images: int, classes: int, seed: int, temperature: float) -> None:
    student, teacher = (
        normal(images, classes, seed=seed),
        normal(images, classes, seed=seed + 1, scale=3),
    )
    log_s, log_t = (log_softmax(z.numpy() / temperature, axis=1) for z in (student, teacher))
    expected = temperature**2 * (np.exp(log_t) * (log_t - log_s)).sum(axis=1).mean()
    np.testing.assert_allclose(
        soft(student, teacher, temperature).item(), expected, rtol=1e-9, atol=1e-12
    )


@settings(max_examples=30)
@given(**shapes)
def test_it_is_zero_and_flat_where_student_and_teacher_agree(
    images: int, classes: int, seed: int, temperature: float
) -> None:
    student = leaf(normal(images, classes, seed=seed))
    value = soft(student, student.detach(), temperature)
    assert value == 0
    assert gradient(value, student).abs().max() < 1e-12


@settings(max_examples=30)
@given(**shapes)
def test_the_gradient_is_the_difference_of_the_probabilities_times_the_temperature(
    images: int, classes: int, seed: int, temperature: float
) -> None:
    student, teacher = (
        leaf(normal(images, classes, seed=seed)),
        normal(images, classes, seed=seed + 1),
    )
    expected = (
        temperature
        / images
        * ((student / temperature).softmax(1) - (teacher / temperature).softmax(1))
    )
    torch.testing.assert_close(gradient(soft(student, teacher, temperature), student), expected)


@settings(max_examples=30)
@given(**shapes, shift=st.floats(-100, 100))
def test_a_constant_added_to_an_images_logits_changes_nothing(
    images: int, classes: int, seed: int, temperature: float, shift: float
) -> None:
    student, teacher = normal(images, classes, seed=seed), normal(images, classes, seed=seed + 1)
    moved = soft(student + shift, teacher - shift * torch.arange(images)[:, None], temperature)
    torch.testing.assert_close(moved, soft(student, teacher, temperature), rtol=1e-6, atol=1e-9)


def test_at_high_temperature_it_is_half_the_mean_square_of_the_centered_logits() -> None:
    student, teacher = normal(7, 12, seed=1), normal(7, 12, seed=2)
    gap = student - teacher
    expected = (gap - gap.mean(1, keepdim=True)).square().mean(1).mean() / 2
    torch.testing.assert_close(soft(student, teacher, 900.0), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("classes", [10, 1000])
def test_the_mean_is_over_the_batch_and_not_over_batch_and_classes(classes: int) -> None:
    """Fault 3 of other toolkits: 1000 times too small at 1,000 classes."""
    student, teacher = normal(4, classes, seed=1), normal(4, classes, seed=2)
    per_image = [soft(student[i : i + 1], teacher[i : i + 1], 2.0) for i in range(4)]
    torch.testing.assert_close(soft(student, teacher, 2.0), torch.stack(per_image).mean())
    too_small = (
        4
        * F.kl_div((student / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="none").mean()
    )
    torch.testing.assert_close(soft(student, teacher, 2.0), classes * too_small)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 1000.0])
@pytest.mark.parametrize("teacher", [[1e4, -1e4, 0.0], [0.0, 0.0, 0.0], [3e-5, 2e-5, -1e-5]])
def test_low_temperatures_and_sure_models_give_no_nan(
    temperature: float, teacher: list[float]
) -> None:
    """Fault 11 of other toolkits: NaN gradients at low temperature."""
    student = leaf(torch.tensor([[-1e4, 1e4, 0.0], [1e4, 1e4, 1e4], [1.0, 2.0, 3.0]]))
    value = soft(student, torch.tensor([teacher] * 3), temperature)
    assert value.isfinite()
    assert gradient(value, student).isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, "hot", None])
def test_a_temperature_that_is_none_is_refused(temperature: object) -> None:
    with pytest.raises(RequestError, match="temperature"):
        make("soft_target", temperature=temperature)
