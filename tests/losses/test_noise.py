import torch

from kd_app.losses.noise import draw_noise
from tests.losses.samples import labels


def test_the_numbers_are_uniform_and_belong_to_the_image_and_the_moment_and_not_to_the_place_in_the_batch() -> (
    None
):
    batch, moved, later = labels(200), labels(200), labels(200)
    order = torch.arange(199, -1, -1)
    moved.index, later.progress = batch.index[order], 0.25
    found = draw_noise(batch, 50)
    assert torch.equal(draw_noise(moved, 50), found[order])
    assert not torch.isin(draw_noise(later, 50), found).any()
    counts = torch.histc(found.float(), 10, 0, 1)
    assert counts.sum() == 10_000
    assert (counts - 1000).abs().max() < 150
    assert (
        torch.corrcoef(torch.stack([found[:, :-1].flatten(), found[:, 1:].flatten()]))[0, 1].abs()
        < 0.05
    )
    assert (
        torch.corrcoef(torch.stack([found[:-1].flatten(), found[1:].flatten()]))[0, 1].abs() < 0.05
    )
