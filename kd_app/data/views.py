"""Augmentation that can be replayed: the pixels of an image in a view are a pure
function of (data.seed, index, view number).

A user's own view is a subclass of `ImageView` (one image at a time) or of `View` (a
batch at once), named by ``data.view._target_``.
"""

import math
import random
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from jaxtyping import Int64, UInt8, UInt64
from PIL import Image, ImageEnhance
from pydantic import Field, NonNegativeFloat, NonNegativeInt

from kd_app.config import InputSpec, RequestError, Typed
from kd_app.data.crop import center, resolve_resampling

Keys = UInt64[np.ndarray, " batch"]
Pictures = UInt8[np.ndarray, "batch height width channels"]

EVALUATION = -1
"""`Batch.view` of images that are not augmented."""

_WORD = 2**64
_ATTEMPTS = 10


class ViewInput(Protocol):
    """The images of one batch, as they are stored."""

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) where all images of the data have the same, else None."""

    def to_array(self) -> Pictures:
        """All at once, as a copy. Raises `RequestError` where they differ in size."""

    def iterate_images(self) -> Iterator[Image.Image]:
        """One after the other, in mode 'L' or 'RGB'."""


def compute_image_keys(seed: int, index: Int64[np.ndarray, " batch"], number: int) -> Keys:
    """64 random bits for each image of view `number`: ``mix(mix(mix(seed) + number) +
    index)``, mix being splitmix64.

    G. Steele, D. Lea, C. Flood, Fast splittable pseudorandom number generators, OOPSLA
    2014.
    """
    base = _mix(np.array([seed % _WORD], dtype=np.uint64))
    base = _mix(base + np.uint64(number % _WORD))
    return _mix(base + index.astype(np.uint64))


def _mix(state: Keys) -> Keys:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Keys = state ^ (state >> np.uint64(31))
    return mixed


def remix_keys(keys: Keys, number: int) -> Keys:
    """Other 64 random bits for each key: ``mix(key + mix(number))``."""
    return _mix(keys + _mix(np.array([number], dtype=np.uint64)))


class View(Typed):
    """What happens to the images of a batch before the model sees them."""

    @abstractmethod
    def __call__(self, images: ViewInput, keys: Keys, pixels: InputSpec) -> Pictures:
        """The images at ``pixels.height`` x ``pixels.width`` (channels as stored); all
        that is random follows from `keys`, one an image.
        """

    def is_slow(self, size: tuple[int, int] | None, pixels: InputSpec) -> bool:
        """Whether an image of this stored size costs so much that worker processes pay
        (more than about 5 microseconds).
        """
        return True


class ImageView(View):
    """A view that takes one PIL image at a time; torch's and Python's generators are
    seeded for each, and put back afterwards.
    """

    @abstractmethod
    def transform_image(self, image: Image.Image, pixels: InputSpec) -> Image.Image:
        """`image` at ``pixels.width`` x ``pixels.height``. Any torchvision or timm
        transform of PIL images may be called here.
        """

    def __call__(self, images: ViewInput, keys: Keys, pixels: InputSpec) -> Pictures:
        """See `View`."""
        made = []
        with own_generators():
            for picture, key in zip(images.iterate_images(), keys.tolist(), strict=True):
                random.seed(key)
                torch.default_generator.manual_seed(key >> 1)
                made.append(_check_view(self, self.transform_image(picture, pixels), pixels))
        return np.stack(made)


@contextmanager
def own_generators() -> Iterator[None]:
    """Python's and torch's generators are afterwards as they were."""
    state: tuple[Any, ...] = random.getstate()
    torch_state = torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(state)
        torch.set_rng_state(torch_state)


def _check_view(
    view: View, image: Image.Image, pixels: InputSpec
) -> UInt8[np.ndarray, "height width channels"]:
    if image.size != (pixels.width, pixels.height):
        raise RequestError(
            f"The view {type(view).__name__} gave an image of {image.size}; (width, height) must be"
            f" {(pixels.width, pixels.height)}."
        )
    found = np.asarray(image)
    return found if found.ndim == 3 else found[:, :, None]


class CenterCropView(ImageView):
    """No augmentation: `kd_app.data.crop.center`, the transform of every evaluation."""

    def __init__(self) -> None:
        """Takes no settings."""

    def __call__(self, images: ViewInput, keys: Keys, pixels: InputSpec) -> Pictures:
        """See `View`."""
        return (
            super().__call__(images, keys, pixels)
            if self.is_slow(images.size, pixels)
            else images.to_array()
        )

    def transform_image(self, image: Image.Image, pixels: InputSpec) -> Image.Image:
        """See `ImageView`."""
        return center(image, pixels)

    def is_slow(self, size: tuple[int, int] | None, pixels: InputSpec) -> bool:
        """See `View`."""
        return size != (pixels.height, pixels.width)


class CropFlip(View):
    """Zero padding of `padding` pixels on each side, a crop of the stored size at a
    random place, and, with `flip`, a mirror image half of the time.

    For images of one size. Where the model's is another, the crop is resized to it
    (bilinear, antialiased).
    """

    def __init__(self, *, padding: NonNegativeInt, flip: bool) -> None:
        self.padding = padding
        self.flip = flip

    def __call__(self, images: ViewInput, keys: Keys, pixels: InputSpec) -> Pictures:
        """See `View`; bits 0-20 of a key place the crop's top, 21-41 its left side, bit
        63 mirrors.
        """
        made = images.to_array()
        if self.padding:
            made = _shift_images(made, keys, self.padding)
        if self.flip:
            mirrored = np.flatnonzero(keys >> np.uint64(63))
            for channel in range(
                made.shape[3]
            ):  # plane by plane: numpy is slow at reversing pixels of several bytes
                made[mirrored, :, :, channel] = made[mirrored, :, ::-1, channel]
        return (
            made
            if made.shape[1:3] == (pixels.height, pixels.width)
            else _scale_images(made, pixels)
        )

    def is_slow(self, size: tuple[int, int] | None, pixels: InputSpec) -> bool:
        """See `View`."""
        return False


def _shift_images(images: Pictures, keys: Keys, padding: int) -> Pictures:
    batch, height, width, channels = images.shape
    padded = np.zeros((batch, height + 2 * padding, width + 2 * padding, channels), dtype=np.uint8)
    padded[:, padding : padding + height, padding : padding + width] = images
    places = 2 * padding + 1
    strides = (
        *padded.strides[:3],
        padded.strides[1],
        1,
    )  # an image, a row down, a pixel along; then the rows of the window, as bytes
    windows = np.lib.stride_tricks.as_strided(
        padded, (batch, places, places, height, width * channels), strides, writeable=False
    )
    top, left = (
        (((keys >> np.uint64(shift)) & np.uint64(2**21 - 1)) * np.uint64(places)) >> np.uint64(21)
        for shift in (0, 21)
    )
    moved: Pictures = windows[np.arange(batch), top.astype(np.intp), left.astype(np.intp)].reshape(
        images.shape
    )
    return moved


def _scale_images(images: Pictures, pixels: InputSpec) -> Pictures:
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    scaled = torch.nn.functional.interpolate(
        tensor, (pixels.height, pixels.width), mode="bilinear", antialias=True
    )
    return np.ascontiguousarray(scaled.permute(0, 2, 3, 1).numpy())


class ResizedCrop(ImageView):
    """A random part of the image, resized to the model's size.

    The part's area is a share of the image's, uniform in `scale`; its width / height is
    log-uniform in `ratio`. With `flip`, a mirror image half of the time; brightness,
    contrast and saturation are multiplied by factors from ``1 - jitter`` to ``1 +
    jitter``. C. Szegedy et al., Going Deeper with Convolutions, CVPR 2015,
    arXiv:1409.4842.
    """

    def __init__(
        self,
        *,
        scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]],
        ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]],
        flip: bool,
        jitter: Annotated[NonNegativeFloat, Field(le=1)],
    ) -> None:
        for name, (low, high) in (("scale", scale), ("ratio", ratio)):
            if low > high:
                raise RequestError(
                    f"ResizedCrop: {name}=[{low}, {high}] is empty; expected the smaller number"
                    " first."
                )
        self.scale = scale
        self.ratio = ratio
        self.flip = flip
        self.jitter = jitter

    def transform_image(self, image: Image.Image, pixels: InputSpec) -> Image.Image:
        """See `ImageView`."""
        left, top, width, height = self._choose_part(*image.size)
        size = (pixels.width, pixels.height)
        made = image.resize(
            size,
            resolve_resampling(pixels.interpolation),
            box=(left, top, left + width, top + height),
        )
        if self.flip and random.random() < 0.5:
            made = made.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.jitter:
            for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                made = change(made).enhance(random.uniform(1 - self.jitter, 1 + self.jitter))
        return made

    def _choose_part(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, width, height); the largest part in the middle that has a ratio
        in range, where ten tries find none that fits.
        """
        low, high = (math.log(ratio) for ratio in self.ratio)
        for _ in range(_ATTEMPTS):
            area = width * height * random.uniform(*self.scale)
            ratio = math.exp(random.uniform(low, high))
            across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < across <= width and 0 < down <= height:
                return (
                    random.randint(0, width - across),
                    random.randint(0, height - down),
                    across,
                    down,
                )
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        across, down = (
            max(1, min(width, round(height * ratio))),
            max(1, min(height, round(width / ratio))),
        )
        return (width - across) // 2, (height - down) // 2, across, down
