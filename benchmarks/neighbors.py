"""Exact nearest neighbors against torch's matrix product plus topk, in one interleaved
run, and the largest memory of the process. ``python -m benchmarks.neighbors``

Every query is compared with all images of the gallery. torch gets rows of length 1 and
one block of queries at a time, as large as its own memory allows (``--block``).
"""

import argparse
import resource

import numpy as np
import torch

from kd_app.deployment.timing import time_interleaved
from kd_app.metrics.neighbors import find_neighbors, normalize_rows


def main() -> None:
    """Print the median seconds of both, their ratio with its range, and the memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000, help="of the gallery")
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--block", type=int, default=1_000, help="queries at a time for torch")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    gallery = random.standard_normal((arguments.images, arguments.width), dtype=np.float32)
    queries = gallery[: arguments.queries]
    near, far = normalize_rows(queries), normalize_rows(gallery)

    def search_with_torch() -> None:
        for part in near.split(arguments.block):
            (part @ far.T).topk(arguments.k, dim=1)

    def search_here() -> None:
        find_neighbors(queries, gallery, arguments.k, is_same=len(queries) == len(gallery))

    calls = {"torch": search_with_torch, "kd_app": search_here}
    once = dict.fromkeys(calls, 1)
    seconds = time_interleaved(calls, rounds=arguments.rounds, repeats=once)
    ratios = (seconds["kd_app"] / seconds["torch"]).ravel()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{arguments.queries:,} queries among {arguments.images:,} x {arguments.width},"
        f" {torch.get_num_threads()} thread(s): torch {np.median(seconds['torch']):.2f} s, kd_app"
        f" {np.median(seconds['kd_app']):.2f} s, ratio {np.median(ratios):.2f}"
        f" ({ratios.min():.2f} to {ratios.max():.2f} in {len(ratios)} rounds); largest memory"
        f" {memory:.2f} GiB"
    )


if __name__ == "__main__":
    main()
