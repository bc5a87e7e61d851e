"""Collectives in a process group of one rank; `test_ranks` tests several ranks."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kd_app.data.batch import Batch
from kd_app.distributed.collectives import (
    AllGatherWithGrad,
    gather_batch,
    gather_outputs,
    is_distributed,
)
from kd_app.models.outputs import Outputs


@pytest.fixture
def _group(tmp_path: Path) -> Iterator[None]:
    """A gloo process group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_without_a_group_and_with_one_rank_nothing_is_distributed(tmp_path: Path) -> None:
    assert not is_distributed()


@pytest.mark.usefixtures("_group")
def test_one_rank_gathers_its_own_rows_and_gradients() -> None:
    assert not is_distributed()
    rows = torch.arange(6.0).view(3, 2).requires_grad_()
    gathered = AllGatherWithGrad.apply(rows)
    assert torch.equal(gathered, rows)
    (gathered * torch.arange(6.0).view(3, 2)).sum().backward()
    assert torch.equal(rows.grad if rows.grad is not None else rows, torch.arange(6.0).view(3, 2))


@pytest.mark.usefixtures("_group")
def test_only_the_fields_that_terms_read_are_gathered() -> None:
    outputs = Outputs(
        logits=torch.zeros(2, 3), embedding=torch.ones(2, 4), features=[torch.ones(2, 1, 1, 1)]
    )
    gathered = gather_outputs(outputs, frozenset({"logits", "features"}))
    assert gathered.embedding is outputs.embedding
    assert gathered.logits is not outputs.logits
    assert gathered.logits is not None
    assert torch.equal(gathered.logits, torch.zeros(2, 3))
    assert gathered.features is not None
    assert [tensor.shape for tensor in gathered.features] == [(2, 1, 1, 1)]


@pytest.mark.usefixtures("_group")
def test_the_images_of_a_batch_stay_on_their_rank() -> None:
    batch = Batch(torch.zeros(2, 1, 4, 4), torch.tensor([1, 0]), torch.tensor([5, 6]))
    gathered = gather_batch(batch)
    assert gathered.image is batch.image
    assert gathered.labeled is None
    assert (gathered.target.tolist(), gathered.index.tolist()) == ([1, 0], [5, 6])
