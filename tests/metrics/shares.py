"""One rank of a test with two ranks, in a separate module to keep imports small."""

from collections.abc import Callable

import torch
from torch import Tensor

from kd_app.metrics.classification import Tally, build_model_metrics
from kd_app.metrics.pair import build_pair_metrics

Images = dict[str, Tensor]
SHARES: dict[str, Callable[[int, int], range]] = {
    "every second": lambda rank, n: range(rank, n, 2),
    "uneven": lambda rank, n: range(n - 10) if rank == 0 else range(n - 10, n),
    "one has none": lambda rank, n: range(n) if rank == 0 else range(0),
}


def compute_all_metrics(images: Images) -> tuple[dict[str, Tensor], int]:
    """Compute all metrics over all ranks, and the number of images of this rank."""
    student, teacher, target = images["student"], images["teacher"], images["target"]
    whole, pair = build_model_metrics(student.shape[1]), build_pair_metrics()
    if len(target):
        whole.update(student, target)
        pair.update(student, teacher, target)
    top1 = whole["top1"]
    assert isinstance(top1, Tally)
    return {**whole.compute(), **pair.compute()}, int(top1.count())


def measure_shares(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    images = torch.load(f"{folder}/images.pt")
    results = {}
    for name, share in SHARES.items():
        rows = torch.tensor(list(share(rank, len(images["target"]))), dtype=torch.int64)
        results[name] = compute_all_metrics({key: column[rows] for key, column in images.items()})
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
