"""For each image another one of its class."""

import numpy as np
from jaxtyping import Int64


def draw_class_partners(
    target: Int64[np.ndarray, " images"], rows: Int64[np.ndarray, " rows"], *, seed: int
) -> Int64[np.ndarray, " images"]:
    """By image number: for each of the images `rows` another one of them, of the same
    class.

    Within a class it is one random cycle over all its images, which follows from
    `seed`: each image is the partner of exactly one, and its own only where it is alone
    in its class. Images that are not among `rows` are their own partners.
    """
    partners = np.arange(len(target))
    order = np.random.default_rng([seed, len(rows)]).permutation(rows)
    order = order[np.argsort(target[order], kind="stable")]
    starts = np.flatnonzero(np.diff(target[order], prepend=-1))
    following = np.roll(order, -1)
    following[np.append(starts[1:], len(order)) - 1] = order[starts]
    partners[order] = following
    return partners
