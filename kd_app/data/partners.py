"""Other pixels beside the images of a batch: a partner image, or a second view."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from jaxtyping import Int64

PartnerKind = Literal["class", "all", "view"]
"""class: another image of the same class. all: another image, whatever its class.
view: the image itself, in another view.
"""
_VIEW_SHIFT: Final = 2**32
"""More views than a training has, so that a second view is the first view of no
epoch.
"""


@dataclass(frozen=True)
class Partners:
    """images: by image number, the partner. view_shift: added to the number of the
    view.
    """

    images: Int64[np.ndarray, " images"]
    view_shift: int = 0


def draw_partners(
    kind: PartnerKind,
    target: Int64[np.ndarray, " images"],
    rows: Int64[np.ndarray, " rows"],
    *,
    seed: int,
) -> Partners:
    """Return partners of the images `rows`. target: class numbers by image number."""
    if kind == "view":
        return Partners(np.arange(len(target)), view_shift=_VIEW_SHIFT)
    classes = target if kind == "class" else np.zeros_like(target)
    return Partners(draw_class_partners(classes, rows, seed=seed))


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
