import warnings
from pathlib import Path

import torch

from tests.metrics.shares import SHARES, compute_all_metrics, measure_shares
from tests.training.processes import start, wait_for_exit


def test_two_ranks_give_the_metrics_of_one_even_with_uneven_shares(
    tmp_path: Path,
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = {
        "student": torch.randn(101, 7, generator=generator),
        "teacher": torch.randn(101, 7, generator=generator),
        "target": torch.randint(6, (101,), generator=generator),
    }
    torch.save(images, tmp_path / "images.pt")
    workers = [start(measure_shares, rank, str(tmp_path)) for rank in range(2)]
    assert [wait_for_exit(worker, 200) for worker in workers] == [0, 0]
    alone, _ = compute_all_metrics(images)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for share, own in zip(SHARES, ((51, 50), (91, 10), (101, 0)), strict=True):
        for rank in range(2):
            result, still_own = ranks[rank][share]
            assert still_own == own[rank]
            assert result.keys() == alone.keys()
            for name, value in alone.items():
                torch.testing.assert_close(
                    result[name],
                    value,
                    rtol=1e-5,
                    atol=1e-6,
                    equal_nan=True,
                    msg=f"{name}: {result[name]} {value}",
                )


def test_every_metric_without_images_is_nan() -> None:
    images = {name: torch.zeros(0, 4) for name in ("student", "teacher")}
    with warnings.catch_warnings(action="ignore"):  # torchmetrics': compute before update
        result, _ = compute_all_metrics({**images, "target": torch.zeros(0, dtype=torch.int64)})
    assert all(value.isnan().all() for value in result.values())
