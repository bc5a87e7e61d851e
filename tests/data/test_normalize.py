import numpy as np
import pytest
import torch

from kd_app.config import InputSpec
from kd_app.data.normalize import normalize

COLOR = InputSpec(3, 5, 4, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_follows_the_formula_and_the_memory_format(
    memory_format: torch.memory_format, channels: int
) -> None:
    image = torch.randint(0, 256, (6, channels, 5, 4), dtype=torch.uint8)
    mean, std = (np.array(values)[None, :, None, None] for values in (COLOR.mean, COLOR.std))
    for layout in (image, image.contiguous(memory_format=torch.channels_last)):
        result = normalize(layout, COLOR, memory_format)
        assert result.dtype == torch.float32
        assert result.is_contiguous(memory_format=memory_format)
        np.testing.assert_allclose(result.numpy(), (image.numpy() / 255 - mean) / std, atol=1e-6)


def test_the_result_is_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (
            normalize(torch.zeros(1, 3, 5, 4, dtype=torch.uint8), COLOR, torch.channels_last).dtype
            == torch.float32
        )


def test_an_empty_batch_stays_empty() -> None:
    assert normalize(
        torch.zeros(0, 3, 5, 4, dtype=torch.uint8), COLOR, torch.channels_last
    ).shape == (0, 3, 5, 4)
