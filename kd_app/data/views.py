"""Views: replayable augmentation.

The pixels of an image in a view are a pure function of (data.seed, index, view number).
A user-provided view is a subclass of `ImageView` (one image at a time) or of `View` (a
whole batch), selected by ``data.view._target_``.
"""

import math
import random
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Int64, UInt8, UInt64
from PIL import Image, ImageEnhance
from pydantic import Field, NonNegativeFloat, NonNegativeInt

from kd_app.config import InputSpec, RequestError, Typed
from kd_app.data.crop import Crop, center, resolve_resampling

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
        """(height, width) of all images of the data; None if sizes differ."""

    def to_array(self) -> Pictures:
        """Return a copy of all images. Raises `RequestError` if sizes differ."""

    def iterate_images(self) -> Iterator[Image.Image]:
        """Yield each image, in mode 'L' or 'RGB'."""

    def read_crop(self, position: int, crop: Crop) -> Image.Image:
        """Return a crop of the image at a position in the batch; a store may decode
        only what the crop needs.
        """


def compute_image_keys(seed: int, index: Int64[np.ndarray, " batch"], number: int) -> Keys:
    """Return 64 random bits for each image of view `number`.

    ``mix(mix(mix(seed) + number) + index)``, where mix is splitmix64: G. Steele, D. Lea
    and C. Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
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


def derive_keys(keys: Keys, number: int) -> Keys:
    """Return 64 new random bits for each key: ``mix(key + mix(number))``."""
    return _mix(keys + _mix(np.array([number], dtype=np.uint64)))


class View(Typed):
    """A transform of the images of a batch to the input size of a model."""

    reads_crops: ClassVar[bool] = False
    """Whether the view calls `ViewInput.read_crop`."""

    @abstractmethod
    def __call__(self, images: ViewInput, keys: Keys, input_spec: InputSpec) -> Pictures:
        """Return the images at ``input_spec.height`` x ``input_spec.width``.

        The number of channels does not change. `keys`, one per image, determine all
        random draws.
        """

    def is_slow(self, size: tuple[int, int] | None, input_spec: InputSpec) -> bool:
        """Whether worker processes help for images of this stored size.

        That is the case from about 5 microseconds per image.
        """
        return True


class ImageView(View):
    """A view that transforms one PIL image at a time.

    The random generators of torch and Python are seeded for each image, and restored
    afterwards.
    """

    @abstractmethod
    def transform_image(self, image: Image.Image, input_spec: InputSpec) -> Image.Image:
        """Return `image` at ``input_spec.width`` x ``input_spec.height``.

        Torchvision and timm transforms of PIL images can be used here.
        """

    def __call__(self, images: ViewInput, keys: Keys, input_spec: InputSpec) -> Pictures:
        pictures = []
        with preserve_generators():
            for image, key in zip(images.iterate_images(), keys.tolist(), strict=True):
                random.seed(key)
                torch.default_generator.manual_seed(key >> 1)
                transformed = self.transform_image(image, input_spec)
                pictures.append(_check_view(self, transformed, input_spec))
        return np.stack(pictures)


@contextmanager
def preserve_generators() -> Iterator[None]:
    """Restore the states of Python's and torch's random generators on exit."""
    state: tuple[Any, ...] = random.getstate()
    torch_state = torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(state)
        torch.set_rng_state(torch_state)


def _check_view(
    view: View, image: Image.Image, input_spec: InputSpec
) -> UInt8[np.ndarray, "height width channels"]:
    if image.size != (input_spec.width, input_spec.height):
        raise RequestError(
            f"The view {type(view).__name__} returned an image of {image.size}. Expected: (width,"
            f" height) = {(input_spec.width, input_spec.height)}."
        )
    return _to_picture(image)


def _to_picture(image: Image.Image) -> UInt8[np.ndarray, "height width channels"]:
    picture = np.asarray(image)
    return picture if picture.ndim == 3 else picture[:, :, None]


class CenterCropView(ImageView):
    """No augmentation, only the evaluation transform `kd_app.data.crop.center`."""

    def __init__(self) -> None:
        """Create the view; it has no settings."""

    def __call__(self, images: ViewInput, keys: Keys, input_spec: InputSpec) -> Pictures:
        if self.is_slow(images.size, input_spec):
            return super().__call__(images, keys, input_spec)
        return images.to_array()

    def transform_image(self, image: Image.Image, input_spec: InputSpec) -> Image.Image:
        return center(image, input_spec)

    def is_slow(self, size: tuple[int, int] | None, input_spec: InputSpec) -> bool:
        return size != (input_spec.height, input_spec.width)


class CropFlip(View):
    """Random crop of zero-padded images, and random mirroring; for images of one size.

    padding: pixels of zeros on each side; the crop has the stored size, and is resized
    if the model has another size (bilinear, antialiased). flip: mirror half of the
    images.
    """

    def __init__(self, *, padding: NonNegativeInt, flip: bool) -> None:
        self.padding = padding
        self.flip = flip

    def __call__(self, images: ViewInput, keys: Keys, input_spec: InputSpec) -> Pictures:
        """Crop and mirror the images.

        Bits 0-20 of a key determine the top of the crop, bits 21-41 its left side, and
        bit 63 the mirroring.
        """
        pictures = images.to_array()
        if self.padding:
            pictures = _shift_images(pictures, keys, self.padding)
        if self.flip:
            mirrored = np.flatnonzero(keys >> np.uint64(63))
            # One channel at a time: numpy is slow at reversing pixels of several bytes.
            for channel in range(pictures.shape[3]):
                pictures[mirrored, :, :, channel] = pictures[mirrored, :, ::-1, channel]
        if pictures.shape[1:3] == (input_spec.height, input_spec.width):
            return pictures
        return _scale_images(pictures, input_spec)

    def is_slow(self, size: tuple[int, int] | None, input_spec: InputSpec) -> bool:
        return False


def _shift_images(images: Pictures, keys: Keys, padding: int) -> Pictures:
    batch, height, width, channels = images.shape
    padded = np.zeros((batch, height + 2 * padding, width + 2 * padding, channels), dtype=np.uint8)
    padded[:, padding : padding + height, padding : padding + width] = images
    places = 2 * padding + 1
    # Axes: image, top of the crop, left side of the crop, row, byte of the row.
    strides = (*padded.strides[:3], padded.strides[1], 1)
    windows = np.lib.stride_tricks.as_strided(
        padded, (batch, places, places, height, width * channels), strides, writeable=False
    )
    top, left = (
        (((keys >> np.uint64(shift)) & np.uint64(2**21 - 1)) * np.uint64(places)) >> np.uint64(21)
        for shift in (0, 21)
    )
    crops = windows[np.arange(batch), top.astype(np.intp), left.astype(np.intp)]
    shifted: Pictures = crops.reshape(images.shape)
    return shifted


def _scale_images(images: Pictures, input_spec: InputSpec) -> Pictures:
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    scaled = torch.nn.functional.interpolate(
        tensor, (input_spec.height, input_spec.width), mode="bilinear", antialias=True
    )
    return np.ascontiguousarray(scaled.permute(0, 2, 3, 1).numpy())


class _CropRange(NamedTuple):
    """Ranges of a random crop, see `ResizedCrop`."""

    scale: tuple[float, float]
    ratio: tuple[float, float]


SMALL_SIDE: Final = 64
"""Pixels of the shorter side up to which an image is small."""
_PHOTO: Final = _CropRange((0.35, 1.0), (0.75, 1.3333))
_SMALL: Final = _CropRange((0.85, 1.0), (0.9, 1.1))


class ResizedCrop(View):
    """A random crop of the image, resized to the model's size.

    scale: range of the crop's share of the area (uniform). ratio: range of the crop's
    width / height (log-uniform). auto: `_PHOTO`, or `_SMALL` for images whose shorter
    side has at most `SMALL_SIDE` pixels, which lose what they show sooner. flip: mirror
    half of the images. jitter: brightness, contrast and saturation are multiplied by
    factors from ``1 - jitter`` to ``1 + jitter``. C. Szegedy et al., Going Deeper with
    Convolutions, CVPR 2015, arXiv:1409.4842.
    """

    reads_crops = True

    def __init__(
        self,
        *,
        scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]
        | Literal["auto"],
        ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
        | Literal["auto"],
        flip: bool,
        jitter: Annotated[NonNegativeFloat, Field(le=1)],
    ) -> None:
        for name, value in (("scale", scale), ("ratio", ratio)):
            if value != "auto" and value[0] > value[1]:
                raise RequestError(
                    f"ResizedCrop: {name}=[{value[0]}, {value[1]}] is an empty range. Expected: the"
                    " smaller number first."
                )
        self.scale = scale
        self.ratio = ratio
        self.flip = flip
        self.jitter = jitter

    def __call__(self, images: ViewInput, keys: Keys, input_spec: InputSpec) -> Pictures:
        size = (input_spec.width, input_spec.height)
        crop = Crop(self._choose_box, size, resolve_resampling(input_spec.interpolation))
        pictures = []
        with preserve_generators():
            for position, key in enumerate(keys.tolist()):
                random.seed(key)
                changed = self._change(images.read_crop(position, crop))
                pictures.append(_to_picture(changed))
        return np.stack(pictures)

    def _change(self, crop: Image.Image) -> Image.Image:
        if self.flip and random.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.jitter:
            for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                crop = change(crop).enhance(random.uniform(1 - self.jitter, 1 + self.jitter))
        return crop

    def _choose_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return a random crop as (left, top, width, height).

        If none of ten random crops fits into the image, the largest centered crop with
        a ratio in range is returned.
        """
        usual = _SMALL if min(width, height) <= SMALL_SIDE else _PHOTO
        scale = usual.scale if self.scale == "auto" else self.scale
        ratios = usual.ratio if self.ratio == "auto" else self.ratio
        low, high = map(math.log, ratios)
        for _ in range(_ATTEMPTS):
            area = width * height * random.uniform(*scale)
            ratio = math.exp(random.uniform(low, high))
            across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < across <= width and 0 < down <= height:
                return (
                    random.randint(0, width - across),
                    random.randint(0, height - down),
                    across,
                    down,
                )
        ratio = min(max(width / height, ratios[0]), ratios[1])
        across = max(1, min(width, round(height * ratio)))
        down = max(1, min(height, round(width / ratio)))
        return (width - across) // 2, (height - down) // 2, across, down
