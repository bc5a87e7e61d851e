"""Image corruptions at five severities, computed on the fly and the same in every run.

The kinds follow D. Hendrycks and T. Dietterich, Benchmarking Neural Network Robustness
to Common Corruptions and Perturbations, ICLR 2019, arXiv:1903.12261. The severities lie
between the paper's settings for 224 and for 32 pixels, so that one scale serves all
sizes from 28 pixels up. The resulting metrics are therefore not comparable with
ImageNet-C; they compare models that are evaluated on the same images.
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
    "gaussian_noise": (0.04, 0.08, 0.12, 0.18, 0.26),
    "gaussian_blur": (0.07, 0.1, 0.13, 0.17, 0.24),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "jpeg": (65, 40, 25, 15, 7),
    "pixelate": (0.8, 0.65, 0.5, 0.4, 0.3),
}
"""The second argument of each kind's function below, at severity 1 to 5."""

_SMALL = 64 * 64
"""Number of pixels up to which corrupting an image is cheaper than a worker process."""


def add_gaussian_noise(picture: Picture, sigma: float, key: int) -> Picture:
    """Add independent normal noise of standard deviation ``255 sigma`` to each value.

    key: seed of the noise; the same noise is scaled for all severities.
    """
    noise = np.random.default_rng(key).standard_normal(picture.shape, dtype=np.float32)
    return _to_bytes(picture + 255 * sigma * noise)


def blur(picture: Picture, scale: float, key: int) -> Picture:
    """Convolve with a Gaussian of standard deviation ``scale sqrt(shorter side)``.

    In pixels: 0.4 to 1.3 for a shorter side of 28, and 1 to 3.6 for 224.
    """
    from scipy.ndimage import gaussian_filter

    sigma = scale * min(picture.shape[:2]) ** 0.5
    return _to_bytes(gaussian_filter(picture.astype(np.float32), (sigma, sigma, 0), mode="nearest"))


def change_brightness(picture: Picture, share: float, key: int) -> Picture:
    """Add ``255 share`` to every value."""
    return _to_bytes(picture + np.float32(255 * share))


def change_contrast(picture: Picture, share: float, key: int) -> Picture:
    """Return ``mean + share (value - mean)``, with the mean of each channel."""
    mean = picture.mean(axis=(0, 1), dtype=np.float32)
    return _to_bytes(mean + np.float32(share) * (picture - mean))


def compress_jpeg(picture: Picture, quality: float, key: int) -> Picture:
    """Encode as a JPEG of this quality, and decode the JPEG."""
    file = io.BytesIO()
    _to_image(picture).save(file, "jpeg", quality=int(quality))
    return _to_array(Image.open(file))


def reduce_resolution(picture: Picture, share: float, key: int) -> Picture:
    """Scale the sides by `share` (box filter), then enlarge without smoothing.

    The size of the image does not change.
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
    "pixelate": reduce_resolution,
}


def _to_image(picture: Picture) -> Image.Image:
    return Image.fromarray(picture if picture.shape[2] == 3 else picture[:, :, 0])


def _to_array(image: Image.Image) -> Picture:
    picture = np.asarray(image)
    return picture if picture.ndim == 3 else picture[:, :, None]


def _to_bytes(values: np.ndarray[Any, Any]) -> Picture:
    picture: Picture = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return picture


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption at one severity, 1 to 5."""

    kind: Kind
    severity: int

    def __call__(self, picture: Picture, key: int) -> Picture:
        """Return the corrupted image; `key` determines all random draws."""
        return _FUNCTIONS[self.kind](picture, SETTINGS[self.kind][self.severity - 1], key)


class Corrupted(CenterCropView):
    """The evaluation transform, applied to corrupted images.

    Images are corrupted at their stored size, so that models of all input sizes see
    the same corrupted image.
    """

    def __init__(self, corruption: Corruption) -> None:
        self.corruption = corruption

    def __call__(self, images: ViewInput, keys: Keys, input_spec: InputSpec) -> Pictures:
        corrupted = (
            self.corruption(_to_array(picture), key)
            for picture, key in zip(images.iterate_images(), keys.tolist(), strict=True)
        )
        return np.stack(
            [
                _to_array(self.transform_image(_to_image(picture), input_spec))
                for picture in corrupted
            ]
        )

    def is_slow(self, size: tuple[int, int] | None, input_spec: InputSpec) -> bool:
        return (
            size is None
            or size[0] * size[1] > _SMALL
            or input_spec.height * input_spec.width > _SMALL
        )


class RobustnessSettings(Typed, called="robustness"):
    """Corruptions and severities that models are evaluated on; empty lists: none."""

    def __init__(self, *, corruptions: list[Kind], severities: list[Severity]) -> None:
        for name, values in (("corruptions", corruptions), ("severities", severities)):
            if len(set(values)) < len(values):
                raise RequestError(
                    f"robustness.{name}={values} lists a value twice. List each value once."
                )
        if corruptions and not severities:
            raise RequestError(
                "robustness.corruptions needs at least one severity, but robustness.severities is"
                " empty. Set robustness.severities, for example [1,3,5]."
            )
        self.corruptions = corruptions
        self.severities = severities

    @property
    def chosen(self) -> tuple[Corruption, ...]:
        """Each corruption at each severity."""
        return tuple(
            Corruption(kind, severity) for kind in self.corruptions for severity in self.severities
        )
