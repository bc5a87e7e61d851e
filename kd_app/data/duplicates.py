"""Identical and nearly identical images, found by a hash and a thumbnail of the pixels.

Two images are nearly identical if the correlation of their thumbnails (gray, 32x32) is
above ``1 - NEAR``: copies that were resized, brightened or saved again, not other
pictures of the same thing.
"""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8, UInt64
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

NEAR = 0.001
"""1 - correlation of two thumbnails below which images are nearly identical."""
MAX_COMPARED = 20_000
"""Number of images up to which all images are compared with each other."""
FINE, _COARSE = 32, 8
"""Sides of the thumbnails: all images are compared at the coarse size, the most similar
ones again at the fine size.
"""
_MARGIN = 3
"""Factor on `NEAR` for coarse thumbnails, which only preselect."""
_BLOCK = 512
_PICTURES = 64
"""Pictures of which thumbnails are made at a time."""
_FEW_PAIRS = 8192
"""Number of candidates up to which pairs are compared one by one at the fine size."""
_FEWEST = 3

Groups = Int64[np.ndarray, " images"]
"""For each image, the number of the first image of its group; its own number if the
group holds no other image.
"""


def hash_picture(picture: UInt8[np.ndarray, "height width channels"]) -> int:
    """Return a 64-bit hash of size and pixels; never 0, which marks unknown pixels."""
    digest = sha256(repr(picture.shape).encode())
    digest.update(np.ascontiguousarray(picture).data)
    return int.from_bytes(digest.digest()[:8], "big") or 1


def make_thumbnail(picture: np.ndarray) -> Float[Tensor, "1 32 32"]:
    """The mean over the channels in each cell of a grid over ``[H, W, C]``."""
    return make_thumbnails(picture[None])[0]


def make_thumbnails(pictures: np.ndarray) -> Float[Tensor, "images 1 32 32"]:
    """The thumbnails of pictures of one size, ``[N, H, W, C]``."""
    channels = pictures.shape[3]
    gray = pictures.astype(np.float32) @ np.full(channels, 1 / channels, dtype=np.float32)
    return adaptive_avg_pool2d(torch.from_numpy(gray)[:, None], FINE)


def correlate(first: Tensor, second: Tensor) -> Float[Tensor, "first second"]:
    """The correlations of thumbnails; 0 for an image of one color."""
    return _normalize_contrast(first) @ _normalize_contrast(second).T


def correlate_coarsely(first: Tensor, second: Tensor) -> Float[Tensor, "first second"]:
    """The correlations at the coarse size."""
    return correlate(adaptive_avg_pool2d(first, _COARSE), adaptive_avg_pool2d(second, _COARSE))


def is_candidate(similarity: Tensor) -> Tensor:
    """Whether coarse correlations are high enough for a comparison at the fine size."""
    return 1 - similarity <= _MARGIN * NEAR


def _normalize_contrast(thumbnails: Tensor) -> Tensor:
    """Return rows of mean 0 and length 1; zeros for an image of one color."""
    rows = thumbnails.flatten(1)
    rows = rows - rows.mean(dim=1, keepdim=True)
    lengths: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / lengths.clamp_min(1e-3)


def group_identical(hashes: UInt64[np.ndarray, " images"]) -> Groups:
    """Group images of equal hashes; 0 equals no other hash."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    return np.where(hashes == 0, np.arange(len(hashes)), first[inverse])


def group_similar(thumbnails: Float[Tensor, "images 1 32 32"], groups: Groups) -> Groups:
    """Join `groups` of images whose thumbnails are nearly identical."""
    for rows, columns in _find_similar(thumbnails):
        groups = _join(groups, rows, columns)
    return groups


def _find_similar(thumbnails: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pairs of nearly identical images, block by block."""
    features = _ThumbnailFeatures.compute(thumbnails)
    for start in range(0, len(thumbnails), _BLOCK):
        # Later columns only: every pair is compared once, or twice within a block.
        block, others = features.select(start, start + _BLOCK), features.select(start, None)
        rows, columns = block.match(others)
        later = rows < columns
        yield start + rows[later], start + columns[later]


def match_similar(
    first: Float[Tensor, "images 1 32 32"], second: Float[Tensor, "others 1 32 32"]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows of nearly identical images in `first` and in `second`, block by
    block.
    """
    features, others = _ThumbnailFeatures.compute(first), _ThumbnailFeatures.compute(second)
    for start in range(0, len(first), _BLOCK):
        rows, columns = features.select(start, start + _BLOCK).match(others)
        yield start + rows, columns


class _ThumbnailFeatures(NamedTuple):
    """Thumbnails of mean 0 and length 1, at the coarse and at the fine size."""

    coarse: Float[Tensor, "images 64"]
    fine: Float[Tensor, "images 1024"]

    @classmethod
    def compute(cls, thumbnails: Tensor) -> "_ThumbnailFeatures":
        coarse = adaptive_avg_pool2d(thumbnails, _COARSE)
        return cls(_normalize_contrast(coarse), _normalize_contrast(thumbnails))

    def select(self, start: int, end: int | None) -> "_ThumbnailFeatures":
        """Return some of the images."""
        return _ThumbnailFeatures(self.coarse[start:end], self.fine[start:end])

    def match(self, others: "_ThumbnailFeatures") -> tuple[np.ndarray, np.ndarray]:
        """The rows of nearly identical images here and in `others`."""
        near = is_candidate(self.coarse @ others.coarse.T)
        rows, columns = near.nonzero(as_tuple=True)
        if len(rows) <= _FEW_PAIRS:
            fine = torch.einsum("pc,pc->p", self.fine[rows], others.fine[columns])
            is_near = 1 - fine < NEAR
            return rows[is_near].numpy(), columns[is_near].numpy()
        # one product for many pairs
        rows, columns = (near.any(dim=dim).nonzero()[:, 0] for dim in (1, 0))
        is_near = 1 - self.fine[rows] @ others.fine[columns].T < NEAR
        i, j = (near[rows][:, columns] & is_near).nonzero(as_tuple=True)
        return rows[i].numpy(), columns[j].numpy()


def _join(groups: Groups, first: np.ndarray, second: np.ndarray) -> Groups:
    """Join the groups of the images `first[i]` and `second[i]`."""
    groups = groups.copy()
    while True:
        a, b = groups[first], groups[second]
        differ = a != b
        if not differ.any():
            return groups
        # The larger number is the root of its group, and now points to the smaller one.
        np.minimum.at(groups, np.maximum(a, b)[differ], np.minimum(a, b)[differ])
        while not np.array_equal(groups, roots := groups[groups]):
            groups = roots


def list_copies(groups: Groups) -> list[Sequence[int]]:
    """The image numbers of each group of several images."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    # Most groups are single images, for which no list is made.
    several = ends - starts > 1
    pairs = zip(starts[several].tolist(), ends[several].tolist(), strict=True)
    return [order[start:end].tolist() for start, end in pairs]


class PictureContents(NamedTuple):
    """What the pixels of all images have in common.

    hashes: of the pixels; 0 for unreadable images. similar: groups of nearly identical
    images; of identical ones, if there are more than `MAX_COMPARED` images.
    """

    hashes: UInt64[np.ndarray, " images"]
    similar: Groups

    @classmethod
    def read(cls, pixels: UInt8[Tensor, "images channels height width"]) -> "PictureContents":
        """Compare images in memory."""
        pictures = pixels.permute(0, 2, 3, 1).numpy()
        hashes = np.array([hash_picture(picture) for picture in pictures], dtype=np.uint64)
        if len(pictures) > MAX_COMPARED:
            return cls(hashes, group_identical(hashes))
        starts = range(0, len(pictures), _PICTURES)
        thumbnails = [make_thumbnails(pictures[start : start + _PICTURES]) for start in starts]
        return cls.compare(hashes, torch.cat([torch.zeros(0, 1, FINE, FINE), *thumbnails]))

    @classmethod
    def compare(
        cls, hashes: UInt64[np.ndarray, " images"], thumbnails: Float[Tensor, "images 1 32 32"]
    ) -> "PictureContents":
        """Group the images; `thumbnails` have any content if there are too many."""
        same = group_identical(hashes)
        if len(hashes) > MAX_COMPARED:
            return cls(hashes, same)
        return cls(hashes, group_similar(thumbnails, same))

    @property
    def same(self) -> Groups:
        """Groups of identical images."""
        return group_identical(self.hashes)

    def find_copies(self, target: Int64[np.ndarray, " images"]) -> Groups:
        """The groups of images to keep in one split: nearly identical ones. If a
        class would have fewer than three groups, only its identical images, so that
        splits stay possible.
        """
        same, images = self.same, len(target)
        if np.array_equal(self.similar, same):
            return same
        # Classes start at -1, for images without a label.
        pairs = np.unique((target + 1) * images + self.similar) // max(images, 1)
        return np.where(np.bincount(pairs)[target + 1] < _FEWEST, same, self.similar)
