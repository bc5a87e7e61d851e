"""Partner images: for each image, another image of the same class."""

import numpy as np
from jaxtyping import Int64


def draw_class_partners(
    target: Int64[np.ndarray, " images"], rows: Int64[np.ndarray, " rows"], *, seed: int
) -> Int64[np.ndarray, " images"]:
    """Return, by image number, another image of the same class among the images `rows`.

    Within a class, the partners form one random cycle over all images, determined by
    `seed`: each image is the partner of exactly one image. An image is its own partner
    if it is the only one of its class, or not among `rows`.
    """
    partners = np.arange(len(target))
    order = np.random.default_rng([seed, len(rows)]).permutation(rows)
    order = order[np.argsort(target[order], kind="stable")]
    starts = np.flatnonzero(np.diff(target[order], prepend=-1))
    following = np.roll(order, -1)
    following[np.append(starts[1:], len(order)) - 1] = order[starts]
    partners[order] = following
    return partners
