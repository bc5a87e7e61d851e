"""Selection of the training images whose label is used."""

from hashlib import blake2b

import numpy as np
from jaxtyping import Bool, Int64

from kd_app.data.source import Listing


def select_labeled_images(
    listing: Listing, rows: Int64[np.ndarray, " rows"], share: float, *, seed: int
) -> Bool[np.ndarray, " images"]:
    """Return, by image number, whether the label is used.

    Of the n images of a class among `rows`, ``max(1, round(share * n))`` are selected:
    those with the smallest hashes of (seed, file name), so that a larger share includes
    all images of a smaller one. A target below 0 is no label.
    """
    labeled = np.zeros(len(listing.target), dtype=bool)
    order = np.array(
        sorted(rows.tolist(), key=lambda number: _hash(seed, listing.files[number])), dtype=np.int64
    )
    for number in range(len(listing.classes)):
        of_class = order[listing.target[order] == number]
        labeled[of_class[: max(1, round(share * len(of_class)))]] = True
    return labeled


def _hash(seed: int, file: str) -> bytes:
    return blake2b(
        f"{seed}/labels/{file}".encode("utf-8", "surrogateescape"), digest_size=16
    ).digest()
