"""Images mixed with each other, as a pure function of (data.seed, index, view): the
teacher sees the student's pixels, and answers can be stored.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from pydantic import ConfigDict, Field, PositiveFloat
from pydantic.dataclasses import dataclass as checked

from kd_app.data.views import Keys, remix_keys


class MixDraw(NamedTuple):
    """partner: with which image each one is mixed. kept: ``[B, H, W]``, the share of
    its own in each pixel, and `share` ``[B]``, their mean.
    """

    partner: Int64[np.ndarray, " batch"]
    kept: Float32[np.ndarray, "batch height width"]
    share: Float32[np.ndarray, " batch"]


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class MixSettings:
    """How images are mixed: ``own * share + other * (1 - share)`` for pixels and labels
    alike, share from Beta(a, a).

    mixup: a, for whole images (Zhang et al., ICLR 2018, arXiv 1710.09412). cutmix: a,
    for a rectangle of the area 1 - share that is the other's (Yun et al., ICCV 2019,
    arXiv 1905.04899); what of it lies outside of the image is cut off, and the share
    counted anew. Of both, each is drawn for half of the images. probability: that an
    image is mixed. None: not that way.

    The partner is any image to train on, in its own view of the same number; of an
    image with a label it is one with a label. Not another one of the batch, as
    elsewhere: so an image is the same in every batch, on any number of ranks, at the
    price of making two views for each.
    """

    SWITCHES: ClassVar[tuple[str, ...]] = ("mixup", "cutmix")
    """The settings of which one has to be set for anything to be mixed."""

    mixup: PositiveFloat | None
    cutmix: PositiveFloat | None
    probability: Annotated[float, Field(gt=0, le=1)]

    @property
    def active(self) -> bool:
        """Whether anything is mixed."""
        return bool(self._list_ways())

    def describe(self) -> str:
        """A phrase for the plan of a run."""
        return f"mixed by {' and '.join(self._list_ways())}"

    def _list_ways(self) -> list[str]:
        return [name for name in self.SWITCHES if getattr(self, name) is not None]


@dataclass(frozen=True)
class BatchMixer:
    """`mix` for these data: their number of classes, the images to train on (`rows`),
    and by image number whether it has a label, None: all have.
    """

    mix: MixSettings
    classes: int
    rows: Int64[np.ndarray, " rows"]
    labeled: Bool[np.ndarray, " images"] | None

    def draw(
        self, keys: Keys, index: Int64[np.ndarray, " batch"], size: tuple[int, int]
    ) -> MixDraw:
        """What `keys` draw for the images `index`, of (height, width) `size`."""
        mix, chance = self.mix, [_draw_uniform(remix_keys(keys, number)) for number in range(6)]
        cut = (
            np.full(len(index), mix.mixup is None)
            if mix.mixup is None or mix.cutmix is None
            else chance[1] < 0.5
        )
        share = np.ones(len(index))
        for alpha, which in ((mix.mixup, ~cut), (mix.cutmix, cut)):
            if alpha is not None and which.any():
                share[which] = _draw_beta(alpha, chance[2][which])
        share[chance[3] >= mix.probability] = 1.0
        kept = np.broadcast_to(share.astype(np.float32)[:, None, None], (len(index), *size)).copy()
        if cut.any():
            kept[cut] = 1.0 - _draw_boxes(1.0 - share[cut], chance[4][cut], chance[5][cut], size)
        return MixDraw(self._choose_partners(index, chance[0]), kept, kept.mean(axis=(1, 2)))

    def _choose_partners(
        self, index: Int64[np.ndarray, " batch"], chance: Float64[np.ndarray, " batch"]
    ) -> Int64[np.ndarray, " batch"]:
        partner = _from(self.rows, chance)
        return (
            partner
            if self.labeled is None
            else np.where(
                self.labeled[index], _from(self.rows[self.labeled[self.rows]], chance), partner
            )
        )


def mix_pixels(
    own: UInt8[np.ndarray, "batch height width channels"],
    other: UInt8[np.ndarray, "batch height width channels"],
    drawn: MixDraw,
) -> UInt8[np.ndarray, "batch height width channels"]:
    """The pixels, rounded to 8 bits."""
    kept = drawn.kept[..., None]
    blended: UInt8[np.ndarray, "batch height width channels"] = np.rint(
        own * kept + other * (1.0 - kept)
    ).astype(np.uint8)
    return blended


def mix_labels(
    own: Int64[np.ndarray, " batch"],
    other: Int64[np.ndarray, " batch"],
    drawn: MixDraw,
    classes: int,
) -> Float32[np.ndarray, "batch classes"]:
    """``[B, K]``: the share of each class; not a number in the rows of images without a
    label (class -1).
    """
    found = np.zeros((len(own), classes), dtype=np.float32)
    rows = np.arange(len(own))
    found[rows, own] += drawn.share
    found[rows, other] += 1.0 - drawn.share
    found[own < 0] = np.nan
    return found


def _draw_uniform(keys: Keys) -> Float64[np.ndarray, " batch"]:
    """In [0, 1), from the upper 53 bits."""
    return (keys >> np.uint64(11)).astype(np.float64) / 2**53


def _from(
    rows: Int64[np.ndarray, " rows"], chance: Float64[np.ndarray, " batch"]
) -> Int64[np.ndarray, " batch"]:
    found: Int64[np.ndarray, " batch"] = rows[(chance * len(rows)).astype(np.int64)]
    return found


def _draw_beta(
    alpha: float, chance: Float64[np.ndarray, " drawn"]
) -> Float64[np.ndarray, " drawn"]:
    """The quantiles of Beta(alpha, alpha)."""
    from scipy.special import betaincinv

    found: Float64[np.ndarray, " drawn"] = betaincinv(alpha, alpha, chance)
    return found


def _draw_boxes(
    area: Float64[np.ndarray, " drawn"],
    down: Float64[np.ndarray, " drawn"],
    across: Float64[np.ndarray, " drawn"],
    size: tuple[int, int],
) -> Float32[np.ndarray, "drawn height width"]:
    """1 inside of a rectangle of this share of the area and the image's proportions
    around a random point, 0 outside.
    """
    inside: list[Bool[np.ndarray, "drawn length"]] = []
    for length, center in zip(size, (down, across), strict=True):
        half, middle = np.sqrt(area) * length / 2, center * length
        start, end = np.rint(middle - half)[:, None], np.rint(middle + half)[:, None]
        place = np.arange(length)[None]
        inside.append((place >= start) & (place < end))
    found: Float32[np.ndarray, "drawn height width"] = (
        inside[0][:, :, None] & inside[1][:, None, :]
    ).astype(np.float32)
    return found
