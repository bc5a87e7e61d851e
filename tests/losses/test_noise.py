import torch

from kd_app.losses.noise import draw_noise
from tests.losses.samples import labels


def test_numbers_are_uniform_and_depend_on_image_and_step_only() -> None:
    batch, moved, later = labels(200), labels(200), labels(200)
    order = torch.arange(199, -1, -1)
    moved.index, later.progress = batch.index[order], 0.25
    numbers = draw_noise(batch, 50)
    assert torch.equal(draw_noise(moved, 50), numbers[order])
    assert not torch.isin(draw_noise(later, 50), numbers).any()
    counts = torch.histc(numbers.float(), 10, 0, 1)
    assert counts.sum() == 10_000
    assert (counts - 1000).abs().max() < 150
    assert (
        torch.corrcoef(torch.stack([numbers[:, :-1].flatten(), numbers[:, 1:].flatten()]))[
            0, 1
        ].abs()
        < 0.05
    )
    assert (
        torch.corrcoef(torch.stack([numbers[:-1].flatten(), numbers[1:].flatten()]))[0, 1].abs()
        < 0.05
    )
