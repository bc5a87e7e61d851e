"""Which of the images to train on keep their label, where only a share of them may."""

from hashlib import blake2b

import numpy as np
from jaxtyping import Bool, Int64

from kd_app.data.source import Listing


def select_labeled_images(
    listing: Listing, rows: Int64[np.ndarray, " rows"], share: float, *, seed: int
) -> Bool[np.ndarray, " images"]:
    """By image number: whether its label may be used. Of the n images of a class among
    `rows` that are ``max(1, round(share * n))``.

    They are those with the least hashes of (seed, file name): what a smaller share
    keeps, a larger one keeps as well. A target below 0 is no label.
    """
    kept = np.zeros(len(listing.target), dtype=bool)
    order = np.array(
        sorted(rows.tolist(), key=lambda number: _hash(seed, listing.files[number])), dtype=np.int64
    )
    for number in range(len(listing.classes)):
        of_class = order[listing.target[order] == number]
        kept[of_class[: max(1, round(share * len(of_class)))]] = True
    return kept


def _hash(seed: int, file: str) -> bytes:
    return blake2b(
        f"{seed}/labels/{file}".encode("utf-8", "surrogateescape"), digest_size=16
    ).digest()
