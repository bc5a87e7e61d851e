"""Images made worse on the fly: what a camera, a lens or a bad connection does to them,
at five severities, the same in every run.

The kinds and their scale are those of Hendrycks, Dietterich, 'Benchmarking Neural
Network Robustness to Common Corruptions and Perturbations', ICLR 2019,
arXiv:1903.12261, between the settings that it gives for 224 and for 32 pixels, so that
one scale serves sizes from 28 pixels up. The figures are therefore no ImageNet-C
figures; they compare models that were shown the same images.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pydantic import Field

from kd_app.config import InputSpec, RequestError, Typed
from kd_app.data.views import CenterCropView, Keys, Pictures, ViewInput

Kind = Literal["gaussian_noise", "gaussian_blur", "brightness", "contrast", "jpeg", "pixelate"]
Severity = Annotated[int, Field(ge=1, le=5, strict=True)]
Picture = UInt8[np.ndarray, "height width channels"]

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
SETTINGS: Final[dict[Kind, tuple[float, ...]]] = {
    "gaussian_noise": (0.04, 0.08, 0.12, 0.18, 0.26),  # standard deviation, as a share of 255
    "gaussian_blur": (
        0.07,
        0.10,
        0.13,
        0.17,
        0.24,
    ),  # standard deviation in pixels, over the root of the shorter side
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # what is added, as a share of 255
    "contrast": (
        0.75,
        0.5,
        0.4,
        0.3,
        0.15,
    ),  # what is left of each pixel's distance to the image's mean
    "jpeg": (65, 40, 25, 15, 7),  # quality
    "pixelate": (0.8, 0.65, 0.5, 0.4, 0.3),  # the sides become this share, and are enlarged again
}
"""The setting of each kind at severity 1 to 5."""

_SMALL = 64 * 64
"""ViewInput of so many pixels are corrupted faster than worker processes start."""


def add_gaussian_noise(picture: Picture, sigma: float, key: int) -> Picture:
    """Each value plus its own draw from a normal distribution of standard deviation
    ``255 sigma``; `key` seeds it, at all severities alike.
    """
    noise = np.random.default_rng(key).standard_normal(picture.shape, dtype=np.float32)
    return _to_bytes(picture + 255 * sigma * noise)


def blur(picture: Picture, scale: float, key: int) -> Picture:
    """Convolved with a Gaussian of standard deviation ``scale sqrt(shorter side)``
    pixels: 0.4 to 1.3 at 28 pixels, 1 to 3.6 at 224.
    """
    from scipy.ndimage import gaussian_filter

    sigma = scale * min(picture.shape[:2]) ** 0.5
    return _to_bytes(gaussian_filter(picture.astype(np.float32), (sigma, sigma, 0), mode="nearest"))


def change_brightness(picture: Picture, share: float, key: int) -> Picture:
    """Every value plus ``255 share``."""
    return _to_bytes(picture + np.float32(255 * share))


def change_contrast(picture: Picture, share: float, key: int) -> Picture:
    """``mean + share (value - mean)``, the mean being each channel's over the image."""
    mean = picture.mean(axis=(0, 1), dtype=np.float32)
    return _to_bytes(mean + np.float32(share) * (picture - mean))


def compress_jpeg(picture: Picture, quality: float, key: int) -> Picture:
    """Saved as a JPEG of this quality, and read again."""
    file = io.BytesIO()
    _to_image(picture).save(file, "jpeg", quality=int(quality))
    return _to_array(Image.open(file))


def pixelate(picture: Picture, share: float, key: int) -> Picture:
    """Made smaller to ``share`` of its sides (box filter), and enlarged again without
    smoothing.
    """
    image = _to_image(picture)
    small = (max(1, round(share * image.width)), max(1, round(share * image.height)))
    return _to_array(
        image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)
    )


_FUNCTIONS: Final[dict[Kind, Callable[[Picture, float, int], Picture]]] = {
    "gaussian_noise": add_gaussian_noise,
    "gaussian_blur": blur,
    "brightness": change_brightness,
    "contrast": change_contrast,
    "jpeg": compress_jpeg,
    "pixelate": pixelate,
}


def _to_image(picture: Picture) -> Image.Image:
    return Image.fromarray(picture if picture.shape[2] == 3 else picture[:, :, 0])


def _to_array(image: Image.Image) -> Picture:
    found = np.asarray(image)
    return found if found.ndim == 3 else found[:, :, None]


def _to_bytes(values: np.ndarray[Any, Any]) -> Picture:
    made: Picture = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return made


@dataclass(frozen=True)
class Corruption:
    """One kind at one severity, 1 to 5."""

    kind: Kind
    severity: int

    def __call__(self, picture: Picture, key: int) -> Picture:
        """The image, corrupted; what is random follows from `key`."""
        return _FUNCTIONS[self.kind](picture, SETTINGS[self.kind][self.severity - 1], key)


class Corrupted(CenterCropView):
    """The transform of every evaluation, of images that are corrupted first, as they
    are stored: models of all sizes see the same bad image.
    """

    def __init__(self, corruption: Corruption) -> None:
        self.corruption = corruption

    def __call__(self, images: ViewInput, keys: Keys, pixels: InputSpec) -> Pictures:
        """See `View`."""
        spoiled = (
            self.corruption(_to_array(picture), key)
            for picture, key in zip(images.iterate_images(), keys.tolist(), strict=True)
        )
        return np.stack(
            [_to_array(self.transform_image(_to_image(picture), pixels)) for picture in spoiled]
        )

    def is_slow(self, size: tuple[int, int] | None, pixels: InputSpec) -> bool:
        """See `View`."""
        return size is None or size[0] * size[1] > _SMALL or pixels.height * pixels.width > _SMALL


class Robustness(Typed, called="robustness"):
    """Which corruptions the models are shown, and how severe; none where the list is
    empty.
    """

    def __init__(self, *, corruptions: list[Kind], severities: list[Severity]) -> None:
        for name, values in (("corruptions", corruptions), ("severities", severities)):
            if len(set(values)) < len(values):
                raise RequestError(
                    f"robustness.{name}={values} has one of them twice. Name each once."
                )
        if corruptions and not severities:
            raise RequestError(
                "robustness.corruptions are to be shown at no severity. Set robustness.severities,"
                " for example [1,3,5]."
            )
        self.corruptions = corruptions
        self.severities = severities

    @property
    def chosen(self) -> tuple[Corruption, ...]:
        """Each corruption at each severity."""
        return tuple(
            Corruption(kind, severity) for kind in self.corruptions for severity in self.severities
        )
