"""One rank of a test of two: in a module of its own, so that the processes import little."""

import torch

from kd_app.metrics.classification import Tally, measures


def measure_a_share(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    logits, target = torch.load(f"{folder}/images.pt")
    metric = measures(logits.shape[1])
    metric.update(logits[rank::2], target[rank::2])
    found = {name: float(value) for name, value in metric.compute().items()}
    top1 = metric["top1"]
    assert isinstance(top1, Tally)
    torch.save((found, int(top1.count())), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
