"""Mixup and CutMix as a pure function of (data.seed, index, view).

Teacher and student therefore see the same pixels, and teacher outputs can be cached.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from pydantic import ConfigDict, Field, PositiveFloat
from pydantic.dataclasses import dataclass as checked

from kd_app.data.views import Keys, derive_keys


class MixDraw(NamedTuple):
    """The random draws of one batch.

    partner: number of the image that each image is mixed with. weight: ``[B, H, W]``,
    the share of the image in each mixed pixel. share: ``[B]``, the mean of weight.
    """

    partner: Int64[np.ndarray, " batch"]
    weight: Float32[np.ndarray, "batch height width"]
    share: Float32[np.ndarray, " batch"]


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class MixSettings:
    """Settings of mixup and CutMix.

    Pixels and labels are mixed as ``image * share + partner * (1 - share)``, where
    share is drawn from Beta(a, a). mixup: a for whole images (Zhang et al., ICLR 2018,
    arXiv 1710.09412); None: no mixup. cutmix: a for a rectangle of the partner with an
    area of 1 - share (Yun et al., ICCV 2019, arXiv 1905.04899); the rectangle is
    clipped to the image, and the share recomputed; None: no CutMix. With both, each is
    applied to half of the images. probability: that an image is mixed.

    The partner is any training image, in the view of the same number; a labeled image
    has a labeled partner. Partners are not limited to the batch, as elsewhere. An image
    is therefore the same in every batch and for any number of ranks, at the cost of
    computing two views per image.
    """

    SWITCHES: ClassVar[tuple[str, ...]] = ("mixup", "cutmix")
    """Settings that turn mixing on; at least one of them must be set."""

    mixup: PositiveFloat | None
    cutmix: PositiveFloat | None
    probability: Annotated[float, Field(gt=0, le=1)]

    @property
    def active(self) -> bool:
        """Whether any image can be mixed."""
        return bool(self._list_methods())

    def describe(self) -> str:
        """Return a phrase for the plan of a run."""
        return f"mixed by {' and '.join(self._list_methods())}"

    def _list_methods(self) -> list[str]:
        return [name for name in self.SWITCHES if getattr(self, name) is not None]


@dataclass(frozen=True)
class BatchMixer:
    """Draws the random numbers of `mix` for a data set.

    classes: number of classes. rows: numbers of the training images. labeled: by image
    number, whether the image has a label; None: all have.
    """

    mix: MixSettings
    classes: int
    rows: Int64[np.ndarray, " rows"]
    labeled: Bool[np.ndarray, " images"] | None

    def draw(
        self, keys: Keys, index: Int64[np.ndarray, " batch"], size: tuple[int, int]
    ) -> MixDraw:
        """Draw partners and weights for the images `index`; size: (height, width)."""
        mix = self.mix
        chance = [_draw_uniform(derive_keys(keys, number)) for number in range(6)]
        if mix.mixup is None or mix.cutmix is None:
            cut = np.full(len(index), mix.mixup is None)
        else:
            cut = chance[1] < 0.5
        share = np.ones(len(index))
        for alpha, which in ((mix.mixup, ~cut), (mix.cutmix, cut)):
            if alpha is not None and which.any():
                share[which] = _draw_beta(alpha, chance[2][which])
        share[chance[3] >= mix.probability] = 1.0
        weight = np.empty((len(index), *size), dtype=np.float32)
        weight[:] = share.astype(np.float32)[:, None, None]
        if cut.any():
            weight[cut] = 1.0 - _draw_boxes(1.0 - share[cut], chance[4][cut], chance[5][cut], size)
        return MixDraw(self._choose_partners(index, chance[0]), weight, weight.mean(axis=(1, 2)))

    def _choose_partners(
        self, index: Int64[np.ndarray, " batch"], chance: Float64[np.ndarray, " batch"]
    ) -> Int64[np.ndarray, " batch"]:
        partner = _select_row(self.rows, chance)
        if self.labeled is None:
            return partner
        labeled_rows = self.rows[self.labeled[self.rows]]
        return np.where(self.labeled[index], _select_row(labeled_rows, chance), partner)


def mix_pixels(
    own: UInt8[np.ndarray, "batch height width channels"],
    other: UInt8[np.ndarray, "batch height width channels"],
    draw: MixDraw,
) -> UInt8[np.ndarray, "batch height width channels"]:
    """Return the mixed pixels, rounded to 8 bits."""
    weight = draw.weight[..., None]
    blended: UInt8[np.ndarray, "batch height width channels"] = np.rint(
        own * weight + other * (1.0 - weight)
    ).astype(np.uint8)
    return blended


def mix_labels(
    own: Int64[np.ndarray, " batch"],
    other: Int64[np.ndarray, " batch"],
    draw: MixDraw,
    classes: int,
) -> Float32[np.ndarray, "batch classes"]:
    """Return ``[B, K]``, the share of each class; NaN where one of the two images has
    no label (-1).
    """
    shares = np.full((len(own), classes), np.nan, dtype=np.float32)
    (rows,) = np.nonzero((own >= 0) & (other >= 0))
    shares[rows] = 0.0
    shares[rows, own[rows]] += draw.share[rows]
    shares[rows, other[rows]] += 1.0 - draw.share[rows]
    return shares


def _draw_uniform(keys: Keys) -> Float64[np.ndarray, " batch"]:
    """Return numbers in [0, 1) from the upper 53 bits of the keys."""
    return (keys >> np.uint64(11)).astype(np.float64) / 2**53


def _select_row(
    rows: Int64[np.ndarray, " rows"], chance: Float64[np.ndarray, " batch"]
) -> Int64[np.ndarray, " batch"]:
    selected: Int64[np.ndarray, " batch"] = rows[(chance * len(rows)).astype(np.int64)]
    return selected


def _draw_beta(
    alpha: float, chance: Float64[np.ndarray, " draws"]
) -> Float64[np.ndarray, " draws"]:
    """Return the quantiles of Beta(alpha, alpha) at the probabilities `chance`."""
    from scipy.special import betaincinv

    quantiles: Float64[np.ndarray, " draws"] = betaincinv(alpha, alpha, chance)
    return quantiles


def _draw_boxes(
    area: Float64[np.ndarray, " draws"],
    down: Float64[np.ndarray, " draws"],
    across: Float64[np.ndarray, " draws"],
    size: tuple[int, int],
) -> Float32[np.ndarray, "draws height width"]:
    """Return masks that are 1 inside of a rectangle around a random point, 0 outside.

    area: share of the image's area. down, across: position of the center, in 0..1. The
    rectangle has the aspect ratio of the image.
    """
    inside: list[Bool[np.ndarray, "draws length"]] = []
    for length, center in zip(size, (down, across), strict=True):
        half, middle = np.sqrt(area) * length / 2, center * length
        start, end = np.rint(middle - half)[:, None], np.rint(middle + half)[:, None]
        place = np.arange(length)[None]
        inside.append((place >= start) & (place < end))
    masks = inside[0][:, :, None] & inside[1][:, None, :]
    weights: Float32[np.ndarray, "draws height width"] = masks.astype(np.float32)
    return weights
